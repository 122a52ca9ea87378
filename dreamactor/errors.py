"""Every exception a user can meet, and whose fault it is.

    DreamActorError          one clear line for the user; the command line exits with code 2
    |-- ConfigError          a setting: what was given, what was wanted, what works nearby
    |-- MediaError           a picture or clip that cannot be read or written
    |-- WeightsError         weights that are missing, damaged or of the wrong kind
    |-- AssetError           game art or a cast pack that cannot be read
    |-- AnswerError          a vision-language model gave no answer that can be used
    `-- ShapeError           a tensor of the wrong shape reached a public function

A message names the value, what was wanted and the nearest thing that works. Our own
invariants are `assert`s, never these.
"""


class DreamActorError(Exception):
    """Base of all faults that are explained to the user in one line."""


class ConfigError(DreamActorError):
    """A setting has a value that cannot work."""


class MediaError(DreamActorError):
    """A picture or clip cannot be read or written."""


class WeightsError(DreamActorError):
    """Weights are missing, damaged or belong to another model."""


class AssetError(DreamActorError):
    """Game art or a cast pack cannot be read."""


class AnswerError(DreamActorError):
    """A vision-language model gave no answer that can be used."""


class ShapeError(DreamActorError):
    """A tensor of the wrong shape reached a public function."""
