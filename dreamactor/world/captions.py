"""Plain English for 0 A.D.'s file names: what a look is, what a motion does."""

from __future__ import annotations

import re
from collections.abc import Iterable

LONGEST = 15  # words in the caption of a look
_CULTURES = {
    "athenians": "Athenian",
    "britons": "British Celtic",
    "carthaginians": "Carthaginian",
    "celts": "Celtic",
    "gauls": "Gaulish",
    "han": "Han Chinese",
    "hellenes": "Greek",
    "iberians": "Iberian",
    "kushites": "Kushite",
    "macedonians": "Macedonian",
    "mauryas": "Mauryan Indian",
    "persians": "Persian",
    "ptolemies": "Ptolemaic Egyptian",
    "romans": "Roman",
    "seleucids": "Seleucid",
    "spartans": "Spartan",
    "thebans": "Theban",
}

_ROLES = (  # first match wins
    ("female_citizen|helot_female", "woman"),
    ("ninja", "masked woman"),
    ("helot_male|slave", "labourer"),
    ("hero|king|queen|basileus", "hero"),
    ("healer|druid|priest", "priest"),
    ("minister", "minister"),
    ("trader|merchant", "trader"),
    ("fisher", "fisherman"),
    ("driver|chariot", "charioteer"),
    ("gastraphetes|crossbow", "crossbowman"),
    ("horse_archer|cavalry_archer|camelry_archer", "mounted archer"),
    ("cavalry|camelry", "cavalryman"),
    ("elephant", "elephant rider"),
    ("archer", "archer"),
    ("slinger", "slinger"),
    ("javelin|skirmish", "javelin thrower"),
    ("pikeman", "pikeman"),
    ("halberd", "halberdier"),
    ("axe", "axeman"),
    ("mace|clubman", "maceman"),
    ("swordsman", "swordsman"),
    ("spearman|hoplite", "spearman"),
    ("standard|bearer", "standard bearer"),
    ("woman|female|_f$", "woman"),
)

_THINGS = {  # role of a part -> (word in its name, what it is); first match wins
    "helmet": (
        ("hat|pilos_straw|petasos|kausia", "a hat"),
        ("hood|cowl", "a hood"),
        ("crown|diadem|tiara|wreath", "a headdress"),
        ("turban|headdress|cap|phrygian_cloth|nemes|khat", "a cap"),
        ("hair|bun", ""),
        ("bandana|headband|fillet", "a headband"),
        ("bronze|corinthian|attic|chalcidian|thracian|boeotian|pilos", "a bronze helmet"),
        ("", "a helmet"),
    ),
    "shield": (
        ("aspis|round|hoplon|phalangite", "a round shield"),
        ("thureos|oval|celt", "an oval shield"),
        ("scutum", "a tall shield"),
        ("pelta|crescent", "a light shield"),
        ("wicker|gerrha|spara", "a wicker shield"),
        ("", "a shield"),
    ),
    "weapon": (
        ("spear|lance|doru|hasta|trident|_ji", "a spear"),
        ("pike|sarissa|halb", "a long pike"),
        ("jav|pilum|soliferrum|saunion", "a javelin"),
        ("crossbow|nu_|gastraphetes", "a crossbow"),
        ("sling", "a sling"),
        ("bow", "a bow"),
        ("rhomphaia|falx|kopis|falcata|sword|xiphos|gladius|akinak", "a sword"),
        ("machaira|dao|jian|khopesh", "a sword"),
        ("axe|sagaris", "an axe"),
        ("mace|club", "a mace"),
        ("dagger|knife|seax|pugio", "a dagger"),
        ("staff|rod|stick|sceptre|cane", "a staff"),
        ("scroll|fan", "a scroll"),
    ),
    "cape": (("pelt|fur|wolf|lion|leopard", "a fur cape"), ("", "a cape")),
}

_CLOTHES = (
    ("dress|robe", "a long robe"),
    ("armor", "body armour"),
    ("pants", "trousers"),
    ("naked", "a loincloth"),
    ("", "a tunic"),
)

_ANIMALS = (
    ("arctic_wolf", "a white arctic wolf"),
    ("bear_black", "a black bear"),
    ("bear_brown", "a brown bear"),
    ("bear_white", "a polar bear"),
    ("fox_arctic", "a white arctic fox"),
    ("fox_red", "a red fox"),
    ("elephant_african_baby", "a baby African elephant"),
    ("elephant_african_bush", "an African bush elephant"),
    ("elephant_african_forest", "an African forest elephant"),
    ("elephant_asian", "an Asian elephant"),
    ("elephant", "an elephant"),
    ("giraffe_adult", "a tall giraffe"),
    ("giraffe_baby", "a young giraffe"),
    ("lioness", "a lioness"),
    ("lion", "a lion with a mane"),
    ("tiger", "a striped tiger"),
    ("mastiff", "a mastiff dog"),
    ("wolfhound", "a wolfhound dog"),
    ("wolf", "a grey wolf"),
    ("sanga_cattle", "a sanga cow with long horns"),
    ("zebu", "a zebu with a hump"),
    ("wildebeest", "a wildebeest"),
    ("piglet", "a little piglet"),
    ("pig", "a pink pig"),
    ("boar", "a wild boar"),
    ("whale", "a whale"),
    ("tuna", "a tuna fish"),
    ("fish", "a small fish"),
    ("horse_breed", "a young horse"),
)

_COATS = {
    "bay": "bay",
    "beige": "beige",
    "black": "black",
    "white": "white",
    "gray": "grey",
    "grey": "grey",
    "brown": "brown",
    "tan": "tan",
    "cherrybay": "cherry bay",
    "chestnut": "chestnut",
    "cream": "cream-coloured",
    "spotted": "spotted",
    "skewbald": "skewbald",
    "palomino": "palomino",
    "halflinger": "flaxen",
    "red": "red",
    "yellow": "yellow",
    "blonde": "pale",
}


def _first(table: Iterable[tuple[str, str]], name: str) -> str:
    return next((words for pattern, words in table if re.search(pattern, name)), "")


def _with_article(words: str) -> str:
    return ("an " if words[0].lower() in "aeiou" else "a ") + words


def describe_human(path: str, meshes: Iterable[tuple[str, str]], female: bool) -> str:
    """Caption of a person.

    Args:
        path: Actor, such as `units/spartans/infantry_spearman_b.xml`.
        meshes: (role, name) of every part.
        female: Whether the body is a woman's.
    """
    folder, stem = path.split("/")[-2], path.split("/")[-1].removesuffix(".xml")
    parts = sorted(set(meshes), key=lambda p: ("/props/" in p[1], p))  # a shield before its boss
    role = _first(_ROLES, stem) or ("woman" if female else "soldier")
    if female and role in ("hero", "trader", "priest", "labourer"):
        role = {"hero": "heroine", "priest": "priestess"}.get(role, f"woman {role}")
    words = [_CULTURES.get(folder, ""), role]
    if any(r in ("head", "hair") and "beard" in n and "nobeard" not in n for r, n in parts):
        words.insert(0, "bearded")
    things = []
    for kind in ("helmet", "shield", "weapon", "cape"):
        for _, name in (p for p in parts if p[0] == kind):
            thing = _first(_THINGS[kind], name)
            if thing:
                things.append(thing)
                break
    caption = _with_article(" ".join(w for w in words if w))
    if not things:
        clothes = next((n for r, n in parts if r == "body"), "")
        worn = _first(_CLOTHES, clothes)
        return f"{caption} in {worn.replace('robe', 'dress') if female else worn}"
    listed = things[0] if len(things) == 1 else ", ".join(things[:-1]) + " and " + things[-1]
    caption = f"{caption} with {listed}"
    for adjective in ("bronze ", "round ", "light ", "oval ", "Egyptian "):
        if len(caption.split()) > LONGEST:
            caption = caption.replace(adjective, "")
    return caption


def describe_animal(path: str, texture: str, extras: int) -> str:
    """Caption of an animal from its actor, the name of its texture and the number of props."""
    stem = path.split("/")[-1].removesuffix(".xml")
    plain = _first(_ANIMALS, stem)
    kind = re.sub(r"[_\d]+.*$", "", stem)
    if not plain:
        plain = _with_article(kind.replace("sanga", "sanga cow"))
    coat = " ".join(
        dict.fromkeys(
            w for token in re.split(r"[_/.\d]+", f"{stem}_{texture}") if (w := _COATS.get(token))
        )
    )
    if coat and not any(word in plain for word in coat.split()):
        plain = _with_article(f"{coat} {plain.split(' ', 1)[1]}")
    if len(plain.split()) < 3:
        plain = _with_article("full-grown " + plain.split(" ", 1)[1])
    return plain + (" with harness" if extras > 1 and "elephant" in stem else "")


_RIDES = "sits astride as if riding"
_SIEGE = "works the levers of a siege engine"

_MOTIONS = (  # path of the file -> verb phrase; first match wins
    (r"(shark|whale|tuna)_(idle|fin)", "swims on the spot"),
    (r"shark_walk", "swims slowly"),
    (r"shark_run", "swims fast"),
    (r"quadraped/.*promotion", "rears up"),
    (r"elephant_asian_support_build", "lifts and pushes with its trunk"),
    (r"siege_operators.*walk", "walks pushing a siege engine"),
    (r"siege_operators.*idle", "waits beside a siege engine"),
    (r"siege_operators", _SIEGE),
    (r"fisher.*gather", "hauls in a fishing net"),
    (r"fisher.*move", "rows a boat, seated"),
    (r"fisher", "sits in a boat"),
    (r"chariot.*(walk|move)", "drives a chariot, holding the reins"),
    (r"chariot.*death", "falls down dead"),
    (r"chariot", "stands holding the reins of a chariot"),
    (r"rider.*turret", "stands in a turret as if carried"),
    (r"rider.*(death)", "falls sideways from a seat and dies"),
    (r"rider.*archer.*attack|rider.*attack.*archer", f"{_RIDES} and shoots a bow"),
    (r"rider.*crossbow.*attack", f"{_RIDES} and shoots a crossbow"),
    (r"rider.*jav.*attack|rider.*attack.*jav", f"{_RIDES} and throws a javelin"),
    (r"rider.*spear.*attack|rider.*attack.*spear", f"{_RIDES} and thrusts a spear"),
    (r"rider.*(slaughter|gather_meat)", f"{_RIDES} and bends down to cut meat"),
    (r"rider.*attack", f"{_RIDES} and strikes with a weapon"),
    (r"rider.*promotion", f"{_RIDES} and raises an arm in triumph"),
    (r"rider.*(gallop|run)", f"{_RIDES} at a gallop"),
    (r"rider.*(trot|jog|canter|pace)", f"{_RIDES} at a trot"),
    (r"rider.*(walk)", f"{_RIDES} at a walk"),
    (r"rider.*carry", f"{_RIDES} and carries meat"),
    (r"rider", f"{_RIDES}, waiting"),
    (r"testudo/top_walk", "walks with a shield raised overhead"),
    (r"testudo/top", "stands with a shield raised overhead"),
    (r"testudo.*walk", "walks crouching behind a raised shield"),
    (r"testudo", "crouches behind a raised shield"),
    (r"syntagma.*walk", "walks in step with a levelled pike"),
    (r"syntagma", "stands with a levelled pike"),
    (r"anti_cavalry/back.*attack", "thrusts a spear"),
    (r"anti_cavalry/back", "stands with a braced spear"),
    (r"anti_cavalry.*attack", "kneels and thrusts a spear"),
    (r"anti_cavalry", "kneels with a braced spear"),
    (r"gastraphetes.*attack|crossbowman.*attack", "spans and shoots a crossbow"),
    (r"archer.*attack", "draws and shoots a bow"),
    (r"javelinist.*attack", "throws a javelin"),
    (r"slinger.*attack", "whirls a sling and lets fly"),
    (r"pikeman.*attack", "thrusts a long pike"),
    (r"hoplite.*attack", "thrusts a spear over a shield"),
    (r"spearman.*attack", "attacks with a spear"),
    (r"axe.*attack", "swings an axe"),
    (r"knife.*attack", "stabs with a knife"),
    (r"sword.*attack.*2h", "swings a long sword with both hands"),
    (r"sword.*attack", "attacks with a sword"),
    (r"minister.*attack", "strikes with a fist"),
    (r"capturing", "waves and shouts"),
    (r"promotion", "raises a fist in triumph"),
    (r"carnyx.*attack", "strikes with a war horn"),
    (r"standard.*(walk|jog|run)", "walks carrying a standard"),
    (r"standard", "stands holding a standard"),
    (r"idle_carry_(\w+?)(_[fm])?$", "stands carrying a load of {0}"),
    (r"carry_(\w+?)(_[fm])?$", "walks carrying a load of {0}"),
    (r"farming", "hoes the ground"),
    (r"seeding", "walks and sows seed"),
    (r"gather_(berries|fruit)", "kneels and picks fruit"),
    (r"gather_mine", "swings a pickaxe"),
    (r"gather_wood", "chops wood with an axe"),
    (r"biped.*gather_meat", "kneels and cuts meat"),
    (r"slaughter", "crouches and stabs with a knife"),
    (r"idle_minister", "stands with folded arms"),
    (r"idle_axe", "stands holding an axe"),
    (r"idle_hoe", "stands leaning on a hoe"),
    (r"walk_(axe|hoe|pickaxe|shovel)", "walks carrying a tool"),
    (r"citizen/build", "kneels and hammers"),
    (r"healing", "heals with raised hands"),
    (r"pray", "prays with raised arms"),
    (r"biped.*death", "falls down dead"),
    (r"death_?(left|right)", "falls onto its side and dies"),
    (r"death|dead", "collapses and dies"),
    (r"attack_ranged", "bows its head and rears up"),
    (r"attack", "attacks"),
    (r"feeding|gather_meat", "lowers its head and feeds"),
    (r"swim", "swims"),
    (r"sit$|laydown|idle_sit|idle_rest", "rests on the ground"),
    (r"shake", "stands and shakes its fur"),
    (r"flight", "flies with beating wings"),
    (r"glide", "glides on spread wings"),
    (r"gallop", "gallops"),
    (r"canter", "canters"),
    (r"trot|pace$", "trots"),
    (r"jog", "jogs"),
    (r"run", "runs"),
    (r"walk", "walks"),
    (r"move", "moves forward"),
    (r"biped.*idle_ready", "stands"),
    (r"idle", "stands and looks around"),
)


def describe_motion(path: str) -> str:
    """Caption of a motion: a verb phrase whose subject is the look.

    Args:
        path: Below `art/animation`, without endings, such as `biped/citizen/pray`.
    """
    for pattern, words in _MOTIONS:
        if found := re.search(pattern, path):
            words = words.format(*(g or "" for g in found.groups()))
            break
    else:
        words = "moves on the spot"
    if path.startswith("biped/") and "rid" not in words and "siege" not in words:
        if "shield" in path and "shield" not in words:
            words += " with a shield"
        if re.search(r"/(idle|walk|jog|run)\w*_ready", path):
            words += " in a fighting stance"
        elif re.search(r"/(idle|walk|jog|run)\w*_relax", path):
            words += " at ease"
    return words
