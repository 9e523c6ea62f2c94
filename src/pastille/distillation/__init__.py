"""Learning from a larger model: losses, students, teachers and what they remember."""

from pastille.distillation.alone import TeacherCache, distill
from pastille.distillation.answers import distillation_loss
from pastille.distillation.objective import taught
from pastille.distillation.teaching import Live, Teaching, Told

__all__ = ["Live", "TeacherCache", "Teaching", "Told", "distill", "distillation_loss", "taught"]
