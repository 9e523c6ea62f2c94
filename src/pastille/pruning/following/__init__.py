"""Following the channels of a network from the layer that makes them to those that read them.

Every tensor of one forward pass carries labels that say which channel each of its entries belongs to.
Code that only moves entries moves their labels; what adds or multiplies two tensors says that their
labels name the same channels; a layer with weights reads some labels and makes new ones. What is not
known is never guessed: the channels that run through it stay, and the reason names it.
"""

from pastille.pruning.following.forward_pass import follow as follow
from pastille.pruning.following.trace import Even as Even
from pastille.pruning.following.trace import Size as Size
from pastille.pruning.following.trace import Trace as Trace
from pastille.pruning.following.trace import Use as Use
