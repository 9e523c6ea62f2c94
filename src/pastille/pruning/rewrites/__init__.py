"""Exactly equal forms of modules that can not be pruned as they are."""

from pastille.pruning.rewrites.shortcuts import option_a_convolutions as option_a_convolutions
from pastille.pruning.rewrites.shortcuts import with_convolutions_ as with_convolutions_
