"""Three roles of distillation: the teacher that is matched, the student, and the student's score.

Where all weights learn (nano) they are three networks. With adapters they are one frozen network
with three adapters on it, of which one works at a time: at the size of large backbones a second
network would not fit.

Legend: B examples, C latent channels, F latent frames, h x w cells of one half.
"""

from __future__ import annotations

import copy
import warnings
from typing import Literal, get_args

from diffusers import ModelMixin
from torch import Tensor, nn

from dreamactor.backbones.base import Cond, Trainee
from dreamactor.backbones.lora import NAME, AdapterInfo, layers_of

Role = Literal["teacher", "student", "score"]
ROLES: tuple[Role, ...] = get_args(Role)
ADAPTERS: dict[Role, str] = {"teacher": "teacher", "student": NAME, "score": "score"}
"""Names of their adapters; the student's is the one that files are made of."""


class Trio:
    """Three roles that begin alike.

    Args:
        trainee: Its transformer, with the adapter that is distilled if it has one, is changed in
            place and becomes the student.
        info: Of that adapter; None = all weights learn.
    """

    def __init__(self, trainee: Trainee, info: AdapterInfo | None) -> None:
        self._predict, self._alone = trainee.predict, info is None
        student = trainee.transformer
        self.networks: dict[Role, ModelMixin] = dict.fromkeys(ROLES, student)
        """The network of each role, which may be the same one."""
        if info is None:
            for role in ("teacher", "score"):
                self.networks[role] = copy.deepcopy(student)
            self.networks["teacher"].requires_grad_(False)
            self._at_work: Role | None = None
        else:
            _add_adapters(student, info)
            self._at_work = "student"
        roles: tuple[Role, ...] = ("student", "score")
        self._learning = [p for role in roles for p in self.parameters(role).values()]

    def parameters(self, role: Role) -> dict[str, nn.Parameter]:
        """What learns of a role, by its names in the network; nothing of the teacher."""
        if role == "teacher":
            return {}
        named = self.networks[role].named_parameters()
        if self._alone:
            return dict(named)
        part = f".{ADAPTERS[role]}."
        return {name: value for name, value in named if ".lora_" in name and part in name}

    def switch(self, role: Role) -> None:
        """Have a role's adapter at work; wanted before a backward pass too, if it computes anew."""
        if self._at_work in (role, None):
            return
        self.networks[role].set_adapter(ADAPTERS[role])
        for value in self._learning:  # peft freezes what does not work
            value.requires_grad_(True)
        self._at_work = role

    def ask(self, role: Role, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """Latents (B, C, F, h, 2w) as a role foresees them.

        Args:
            role: Who.
            x: (B, C, F, h, 2w) noisy latents.
            sigma: (B,).
            cond: The canvas.
        """
        self.switch(role)
        return self._predict(self.networks[role], x, sigma, cond).float()


def _add_adapters(transformer: ModelMixin, info: AdapterInfo) -> None:
    """Beside the adapter that is there, two more with its values."""
    own = {name: value for name, value in transformer.named_parameters() if ".lora_" in name}
    for role in ("teacher", "score"):
        with warnings.catch_warnings():  # peft asks whether several are meant: they are
            warnings.filterwarnings("ignore", "Already found a `peft_config`")
            transformer.add_adapter(layers_of(info), ADAPTERS[role])
        for name, value in own.items():
            theirs = transformer.get_parameter(name.replace(f".{NAME}.", f".{ADAPTERS[role]}."))
            theirs.data = value.detach().clone().float()
    transformer.set_adapter(NAME)
    for name, value in transformer.named_parameters():
        value.requires_grad_(".lora_" in name and f".{ADAPTERS['teacher']}." not in name)
