"""The C2PA manifest of a result: what made it, of what, and a signature over the file.

Written by c2pa-python, without any network: no timestamps, no lists of revoked certificates, no
manifests that lie elsewhere. The inputs are named "reference" and "driving" and told by their
sha256; no file's name, no path and no prompt is in a manifest.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreamactor import signer as signers
from dreamactor.errors import ConfigError, DreamActorError, MediaError
from dreamactor.signer import Signer

MIME = {".mp4": "video/mp4", ".mov": "video/quicktime", ".gif": "image/gif"}
"""Suffix -> type, of the containers that carry a manifest."""
BESIDE = {".mkv": "video/x-matroska", ".webm": "video/webm"}
"""Those that do not: theirs goes beside them, as NAME.c2pa."""
SOURCE = "http://cv.iptc.org/newscodes/digitalsourcetype/"
ACTIONS, SETTINGS = "c2pa.actions", "dreamactor.settings"
"""Labels of the assertions; the second holds what only this program knows."""
HARMLESS = (
    *("variant", "pose", "steps", "guidance", "seed", "fit", "fps", "interpolate", "threads"),
    *("device", "dtype", "size", "frames"),
)
"""Settings that name no file and no words of the user's."""
LIBRARY = "c2pa-python"
MISSING = f"{LIBRARY} is not installed"
OFFLINE: dict[str, Any] = {
    "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": True},
    "builder": {"thumbnail": {"enabled": False}},
}
UNTRUSTED = "signingCredential.untrusted"
"""Code of a signature by somebody whom nobody here knows, which alone is no fault."""
LONGEST = 200
"""Characters of a foreign text that are shown."""


def sidecar(clip: Path) -> Path | None:
    """Where the manifest of a clip goes that cannot carry it; None where it can."""
    return clip.with_suffix(".c2pa") if clip.suffix.lower() in BESIDE else None


def check_signer() -> None:
    """Refuse a signer of the user's that cannot sign, before any work.

    Raises:
        ConfigError: See `signer.users`.
    """
    found, library = signers.users(), _library()
    if found is not None and library is not None:
        with _told(library, f"{signers.CERTIFICATE}: cannot sign", ConfigError):
            _native(library, found).close()


def sign(clip: Path, beside: Path | None, record: Mapping[str, Any]) -> dict[str, Any]:
    """Put a manifest into a clip, or write it beside.

    Args:
        clip: A finished clip; replaced by one with a manifest, where it can carry one.
        beside: Where the manifest goes if not.
        record: What `provenance` knows of the clip; only harmless parts are taken.

    Returns:
        What the record says of it: `where` ("file", "beside" or null), and `signer` ("local" or
        "user"), or `why` there is none: c2pa-python is not installed, or the private folder of
        this machine's certificate cannot be used.

    Raises:
        ConfigError: The user's signer cannot sign.
        MediaError: The manifest cannot be written.
    """
    library = _library()
    if library is None:
        return {"where": None, "why": MISSING}
    who = signers.users()
    try:
        who = who or signers.local()
    except MediaError as error:
        return {"where": None, "why": str(error)}
    kind = {**MIME, **BESIDE}[clip.suffix.lower()]
    signed = clip.with_name(f"signed{clip.suffix}")
    try:
        with _told(library, f"{clip}: its C2PA manifest cannot be written", MediaError):
            with (
                library.Context.from_dict(OFFLINE) as context,
                library.Builder(definition(record), context) as builder,
                _native(library, who) as native,
                clip.open("rb") as source,
                _Remembering(signed, "w+b") as disk,
                io.BufferedRandom(disk) as target,
            ):
                if beside is not None:
                    builder.set_no_embed()
                try:
                    data = builder.sign(native, kind, source, target)
                except library.C2paError:
                    if disk.refusal is None:
                        raise
                    raise disk.refusal from None
            if beside is None:
                signed.replace(clip)
            else:
                beside.write_bytes(data)
    finally:
        signed.unlink(missing_ok=True)
    return {
        "where": "file" if beside is None else "beside",
        "signer": "local" if who.local else "user",
    }


def definition(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says, from what the record says."""
    generator = {"name": "DreamActor", "version": record["versions"]["dreamactor"]}
    backbone = record["backbone"]
    mark = record["marks"]["watermark"]
    actions: list[dict[str, Any]] = [
        {
            "action": "c2pa.created",
            "digitalSourceType": f"{SOURCE}trainedAlgorithmicMedia",
            "softwareAgent": generator,
            "parameters": {"ingredientIds": list(record["inputs"])},
        }
    ]
    if mark is not None:
        actions.append({"action": "c2pa.watermarked.unbound", "softwareAgent": generator})
    facts = {
        "settings": {key: record["settings"].get(key) for key in HARMLESS},
        "inputs": record["inputs"],
        # by their hashes alone: of `--lora` the keys are names of the user's files
        "backbone": {"name": backbone["name"], "weights": sorted(backbone["weights"].values())},
        "adapter": (backbone["adapter"] or {}).get("sha256"),
        "watermark": mark,
        "versions": {key: record["versions"].get(key) for key in ("dreamactor", "torch", "av")},
    }
    return {
        "claim_generator_info": [generator],
        "title": "animated clip",
        "ingredients": [
            {
                "label": name,
                "title": name,
                "relationship": "inputTo",
                "instance_id": f"sha256:{told['sha256']}",
                "description": f"sha256 {told['sha256']}",
            }
            for name, told in record["inputs"].items()
        ],
        "assertions": [
            {"label": f"{ACTIONS}.v2", "data": {"actions": actions}},
            {"label": SETTINGS, "data": facts},
        ],
    }


def _library() -> Any:
    """c2pa-python, or None where it is not installed or not built for this platform."""
    try:
        import c2pa
    except (ImportError, OSError, RuntimeError):
        return None
    return c2pa


@contextmanager
def _told(library: Any, what: str, fault: type[DreamActorError]) -> Iterator[None]:
    """Turn what c2pa-python and the operating system say into one line."""
    try:
        yield
    except OSError as error:
        raise fault(f"{what}: {error.strerror or error}") from error
    except library.C2paError as error:
        raise fault(f"{what}: {shown(error)}") from error


class _Remembering(io.FileIO):
    """A file that keeps why it could not be written, of which c2pa-python tells nothing."""

    refusal: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.refusal = error
            raise


def _native(library: Any, who: Signer) -> Any:
    info = library.C2paSignerInfo(who.algorithm, who.chain.encode(), who.key.encode(), None)
    return library.Signer.from_info(info)


# ---- reading -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """What a file's manifest says, and whether it can be believed."""

    state: str
    """none, valid, broken (the file or the manifest was changed), or unknown (nobody can look)."""
    where: str = ""
    """file, or the name of the file beside it."""
    by: str = ""
    """Who signed, as far as that is known here."""
    generator: str = ""
    """What made the file, as it says."""
    generated: bool = False
    """Whether it says that the file is made by a trained model."""
    faults: tuple[str, ...] = ()
    """Codes of C2PA's checks that failed; or why nobody can look."""
    ingredients: dict[str, str] = field(default_factory=dict)
    """Title -> what tells the ingredient."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What this program said of itself; empty for those of others."""

    @property
    def identity(self) -> str | None:
        """Of the watermark that it says was put in."""
        mark = self.settings.get("watermark")
        return shown(mark["identity"]) if isinstance(mark, dict) and "identity" in mark else None


def look(path: Path) -> Seen:
    """Read and check the manifest of any file, hostile ones too; nothing is fetched.

    Args:
        path: A file. Its manifest is in it, or beside it as NAME.c2pa.
    """
    library = _library()
    if library is None:
        return Seen("unknown", faults=(MISSING,))
    beside = path.with_suffix(".c2pa")
    trust = {"trust_anchors": "".join(who.chain for who in signers.known())}
    settings = {**OFFLINE, **({"trust": trust} if trust["trust_anchors"] else {})}
    where = "file"
    with library.Context.from_dict(settings) as context:
        try:
            found = _read(library, path, None, context)
            if found is None and beside.is_file() and beside != path:
                where, found = beside.name, _read(library, path, beside.read_bytes(), context)
        except (library.C2paError, OSError, ValueError) as error:
            return Seen("broken", where, faults=(shown(error),))
    return Seen("none") if found is None else _seen(found, where)


def _read(library: Any, path: Path, data: bytes | None, context: Any) -> dict[str, Any] | None:
    """The report on a manifest; None where there is none."""
    kind = {**MIME, **BESIDE}.get(path.suffix.lower())
    none = (library.C2paError.ManifestNotFound, library.C2paError.NotSupported)
    try:
        with (
            path.open("rb") as file,
            library.Reader(kind, file, manifest_data=data, context=context) as reader,
        ):
            report = json.loads(reader.json())
    except none:
        if data is not None:
            raise
        return None
    return report if isinstance(report, dict) else None


def _seen(report: Mapping[str, Any], where: str) -> Seen:
    manifest = (report.get("manifests") or {}).get(report.get("active_manifest")) or {}
    codes = [str(told.get("code")) for told in report.get("validation_status") or []]
    failed = [code for code in codes if code != UNTRUSTED]
    valid = report.get("validation_state") in ("Valid", "Trusted") and manifest and not failed
    told = {item.get("label"): item.get("data") for item in manifest.get("assertions", [])}
    made = [*manifest.get("claim_generator_info", []), {}][0]
    settings = told.get(SETTINGS)
    return Seen(
        "valid" if valid else "broken",
        where,
        _by(manifest.get("signature_info") or {}, UNTRUSTED not in codes),
        shown(f"{made.get('name', 'unknown')} {made.get('version', '')}".strip()),
        any(_generated(data) for name, data in told.items() if str(name).startswith(ACTIONS)),
        tuple(sorted({shown(code) for code in failed})) or (() if valid else ("not valid",)),
        {
            shown(item.get("title")): shown(item.get("instance_id"))
            for item in manifest.get("ingredients", [])
        },
        settings if isinstance(settings, dict) else {},
    )


def _generated(data: Any) -> bool:
    """Whether an assertion of actions, of anybody, says that a trained model made the file."""
    actions = data.get("actions") if isinstance(data, dict) else None
    return any(
        isinstance(action, dict)
        and "rainedAlgorithmicMedia" in str(action.get("digitalSourceType"))
        for action in (actions if isinstance(actions, list) else [])
    )


def _by(info: Mapping[str, Any], trusted: bool) -> str:
    """Who signed. A name is only what the certificate says, unless it is one of ours."""
    for who in signers.known() if trusted else []:
        if str(signers.serial(who)) == str(info.get("cert_serial_number")):
            return "this machine's local certificate" if who.local else "your certificate"
    issuer = shown(info.get("issuer") or "nobody named")
    if issuer == signers.LOCAL:
        return "a local certificate of another machine, which says nothing of who that is"
    return f"{issuer}, {shown(info.get('common_name') or '')}, whom nobody here vouches for"


def shown(value: object) -> str:
    """A foreign text that may go to a terminal: one line of printable characters, not too long."""
    text = " ".join(str(value).split())
    return "".join(c if c.isprintable() else "?" for c in text)[:LONGEST]
