"""Whose limbs are called what: hands of a person are wings of a bird and forelegs of a dog."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

Plan = Literal["person", "bird", "paws", "hooves", "fish", "limbless"]
"""Body plans that have words of their own for limbs."""


class Limbs(NamedTuple):
    """Words for the four kinds of limb."""

    arm: str
    hand: str
    leg: str
    foot: str


WORDS: dict[Plan, Limbs] = {
    "person": Limbs("arm", "hand", "leg", "foot"),
    "bird": Limbs("wing", "wing", "leg", "claw"),
    "paws": Limbs("foreleg", "front paw", "hind leg", "hind paw"),
    "hooves": Limbs("foreleg", "front hoof", "hind leg", "hind hoof"),
    "fish": Limbs("fin", "fin", "tail", "tail"),
    "limbless": Limbs("upper part", "upper part", "lower part", "lower part"),
}
SINGLE = ("tail", "upper part", "lower part")
"""Limbs of which there is one: no left, no both."""
PLURALS = {"foot": "feet", "front hoof": "front hooves", "hind hoof": "hind hooves"}

SPECIES: dict[Plan, str] = {
    "person": "person man woman boy girl child baby human soldier dancer robot doll astronaut "
    "king queen wizard priest warrior figure archer spearman swordsman hero actor gymnast",
    "bird": "bird eagle parrot chicken hen rooster duck goose swan owl crow penguin pigeon dove "
    "sparrow peacock flamingo ostrich turkey gull hawk falcon stork toucan",
    "paws": "dog puppy cat kitten wolf fox bear lion lioness tiger leopard cheetah panther rabbit "
    "hare mouse rat hamster squirrel raccoon badger otter koala panda hound mastiff groundhog "
    "wolfhound lizard crocodile turtle frog dinosaur dragon",
    "hooves": "horse pony foal donkey mule zebra cow bull ox calf goat sheep lamb ram deer stag "
    "camel giraffe pig piglet boar rhino rhinoceros hippo elephant antelope gazelle wildebeest "
    "zebu muskox bison buffalo llama alpaca moose elk",
    "fish": "fish shark whale dolphin tuna salmon seal goldfish ray orca",
    "limbless": "snake worm eel snail bottle cup mug lamp vase box book candle tree flower chair "
    "teapot ball car train toaster broom umbrella pencil balloon cactus pumpkin",
}
PLAN_OF: dict[str, Plan] = {name: plan for plan, names in SPECIES.items() for name in names.split()}
_TAIL = re.compile(
    r"\b(with|in|on|of|and|that|who|which|is|has|before|at|against|near|wearing|holding|standing|"
    r"sitting|carrying|riding|under|behind|beside|from)\b|[,.;:]"
)
_NOUNS = {  # longest first, so that "hind legs" is not read as "legs"
    "arm": "front legs?|fore ?legs?|fore ?limbs?|wings?|flippers?|fins?|arms?",
    "hand": "front paws?|fore ?paws?|front hoof|front hooves|front feet|wing ?tips?|hands?|fists?|"
    "palms?",
    "leg": "hind legs?|back legs?|hind limbs?|legs?",
    "foot": "hind paws?|back paws?|hind hoof|hind hooves|hind feet|claws?|talons?|foot|feet",
}
_LIMB = re.compile(
    r"\b(?P<which>(?:(?:both|all|two|of|an?|one|the|his|her|its|their|left|right)\s+)*)(?:"
    + "|".join(f"(?P<{kind}>{nouns})" for kind, nouns in sorted(_NOUNS.items(), reverse=True))
    + r")\b",
    re.IGNORECASE,
)
_MANY = ("feet", "hooves")


def plan_of(appearance: str) -> Plan | None:
    """The body plan of who is described, told from the head noun; None where it is not known.

    Example:
        >>> plan_of("a gray bird with colorful feathers"), plan_of("a fox hunter in a cape")
        ('bird', None)
    """
    head = _TAIL.split(appearance.lower(), maxsplit=1)[0].split()
    if not head:
        return None
    noun = head[-1].strip("'\"")
    return PLAN_OF.get(noun) or PLAN_OF.get(noun.removesuffix("s"))


def remap(motion: str, plan: Plan | None) -> str:
    """A motion in words, with the limbs of another body.

    Args:
        motion: Such as "waves both hands".
        plan: Of who shall do it; None leaves the words as they are.

    Example:
        >>> remap("waves both hands and lifts the left foot", "bird")
        'waves both wings and lifts the left claw'
        >>> remap("rears up and beats the air with its forelegs", "person")
        'rears up and beats the air with its arms'
    """
    if plan is None:
        return motion
    words = WORDS[plan]

    def name(found: re.Match[str]) -> str:
        kind = next(kind for kind in Limbs._fields if found[kind])
        before, noun = found[kind].lower(), getattr(words, kind)
        which = found["which"]
        if noun in SINGLE:
            return f"the {noun}"
        many = before.endswith(_MANY) or (before.endswith("s") and not before.endswith("ss"))
        if many:
            noun = PLURALS.get(noun, noun + "s")
        if before.startswith("fist") and plan == "person":
            noun = before
        which = re.sub(r"\b(an?) $", "a " if noun[0] not in "aeiou" else "an ", which)
        return which + noun

    return _LIMB.sub(name, motion)


def strangers(text: str, plan: Plan | None) -> set[str]:
    """Limbs in `text` that a body of this plan does not have; empty where the plan is unknown.

    Example:
        >>> strangers("a gray bird is waving both hands", "bird")
        {'hands'}
    """
    if plan is None:
        return set()
    foreign = {
        "person": "wings?|forelegs?|paws?|hooves|fins?|flippers?",
        "bird": "hands?|arms?|fists?|forelegs?|paws?|hooves|fins?",
        "paws": "hands?|arms?|fists?|wings?|hooves|fins?",
        "hooves": "hands?|arms?|fists?|wings?|paws?|fins?",
        "fish": "hands?|arms?|fists?|wings?|legs?|forelegs?|feet|paws?|hooves",
        "limbless": "hands?|arms?|fists?|wings?|legs?|forelegs?|feet|paws?|hooves|fins?",
    }[plan]
    return set(re.findall(rf"\b(?:{foreign})\b", text.lower()))
