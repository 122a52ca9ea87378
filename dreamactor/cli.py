"""One command per verb."""

from __future__ import annotations

import json
import logging
import signal
import sys
import webbrowser
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from dreamactor.errors import ConfigError, DreamActorError

if TYPE_CHECKING:
    from dreamactor.backbones.load import Variant
    from dreamactor.training.stage import AdaptConfig

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
train = typer.Typer(no_args_is_help=True, help="Train a stage: time-boxed, repeat to resume.")
world = typer.Typer(no_args_is_help=True, help="The synthetic world: characters with truth.")
bench = typer.Typer(no_args_is_help=True, help="Measure: tables with intervals, goals, pictures.")
bootstrap = typer.Typer(
    no_args_is_help=True, help="Pseudo cross-identity pairs: make, gate, review, use."
)
study = typer.Typer(no_args_is_help=True, help="A blinded study with people: make, serve, report.")
app.add_typer(study, name="study")
app.add_typer(train, name="train")
app.add_typer(world, name="world")
app.add_typer(bench, name="bench")
app.add_typer(bootstrap, name="bootstrap")

MINI = Path(__file__).parent / "data" / "mini.castpack"  # ships with the package
Dry = Annotated[bool, typer.Option("--dry-run", help="Predict memory and hours; train nothing.")]
RunOut = Annotated[Path, typer.Option(help="Run folder; the same command resumes it.")]
Settings = Annotated[list[str] | None, typer.Argument(help="Settings that differ: key=value ...")]
ServeFolder = Annotated[Path, typer.Option(help="Of queue and results; the same command goes on.")]
ServeHost = Annotated[str, typer.Option(help="Address to listen on.")]
ServePort = Annotated[int, typer.Option(help="0 = any that is free.")]
ServeName = Annotated[
    list[str] | None, typer.Option(help="Another name that it is reached by, as of a proxy.")
]
ServeDevice = Annotated[
    list[str] | None, typer.Option(help="cpu, cuda or cuda:N; one worker for each.")
]


@app.command()
def animate(
    reference: Annotated[Path, typer.Option(help="Picture of the subject.")],
    driving: Annotated[Path, typer.Option(help="Clip whose motion the subject does.")],
    out: Annotated[Path, typer.Option(help="Clip to write: mp4, mov, mkv, webm or gif.")],
    backbone: Annotated[str, typer.Option(help="Which model.")] = "nano",
    weights: Annotated[
        Path | None, typer.Option(help="Folder of other weights, or hub id of large ones.")
    ] = None,
    variant: Annotated[str, typer.Option(help="rgb: the clip drives; pose: its skeleton.")] = "rgb",
    pose: Annotated[
        str | None, typer.Option(help="Finds joints: keypoints (default), mediapipe or rtmlib.")
    ] = None,
    adapter: Annotated[Path | None, typer.Option(help="Low-rank layers for the model.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help='What the result shows; "" none, default described.')
    ] = None,
    negative: Annotated[str, typer.Option(help="What guidance leads away from.")] = "",
    describer: Annotated[
        str, typer.Option(help="auto: the model named by DREAMACTOR_MLLM_*, if any; or offline.")
    ] = "auto",
    steps: Annotated[int | None, typer.Option(help="Sampling steps.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Pull of the prompt; 1 = off.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    fit: Annotated[str, typer.Option(help="letterbox shows all, crop fills.")] = "letterbox",
    guard: Annotated[
        str, typer.Option(help="Against drift of long clips: none, statistics or anchor.")
    ] = "none",
    fps: Annotated[float | None, typer.Option(help="Output rate; default the clip's.")] = None,
    interpolate: Annotated[str, typer.Option(help="Frames between: flow or nearest.")] = "flow",
    audio: Annotated[bool, typer.Option(help="Carry the driving clip's sound over.")] = True,
    watermark: Annotated[bool, typer.Option(help="Mark the frames invisibly.")] = True,
    manifest: Annotated[bool, typer.Option(help="Sign what made the clip, by C2PA.")] = True,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace OUT and its record.")
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="Large: auto, float32 or bfloat16.")] = "auto",
    offload: Annotated[
        str, typer.Option(help="Large: none, model or group wait in the host's memory.")
    ] = "none",
    size: Annotated[str | None, typer.Option(help="Large: half, such as 832x480.")] = None,
    frames: Annotated[int | None, typer.Option(help="Large: frames of a segment.")] = None,
    lora: Annotated[
        list[str] | None, typer.Option(help="Wan: more low-rank layers, FILE[@SCALE].")
    ] = None,
    cache: Annotated[
        str | None, typer.Option(help="One-way weights: keep the context; none, device or host.")
    ] = None,
    cache_dtype: Annotated[
        str, typer.Option(help="One-way weights: kept in auto, bfloat16 or int8.")
    ] = "auto",
    cache_holds: Annotated[
        str, typer.Option(help="One-way weights: keep keys (and values), or states.")
    ] = "keys",
    threads: Annotated[int, typer.Option(help="CPU threads; the result depends on it.")] = 4,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, write nothing.")
    ] = False,
) -> None:
    """Animate the subject of a picture with the motion of a clip."""
    stated = {name: value for name, value in locals().items() if name != "dry_run"}
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.backbones.catalogue import CATALOGUE
    from dreamactor.diffusion import job

    prepared = job.prepare(job.AnimateConfig(**stated))
    logging.basicConfig(format="%(message)s")
    logging.getLogger("dreamactor.backbones").setLevel(logging.INFO)  # sizes of what will be kept
    from dreamactor.diffusion import pipeline

    if dry_run:
        print(json.dumps(pipeline.preview(prepared), indent=1))
        return
    if adapter is None and CATALOGUE[backbone].hub:
        note = (
            f"note: {backbone} without an --adapter does not know the canvas; want one of its own"
        )
        print(note, file=sys.stderr)
    result = pipeline.run(prepared)
    height, width = result.size
    print(f"{result.out}: {result.frames} frames of {width} x {height}, {result.seconds:.0f} s")
    if manifest and result.facts["marks"]["c2pa"]["where"] is None:
        print(f"note: no C2PA manifest: {result.facts['marks']['c2pa']['why']}", file=sys.stderr)


@app.command()
def verify(
    file: Annotated[Path, typer.Argument(help="Clip or picture.")],
    as_json: Annotated[bool, typer.Option("--json", help="All that is known, as JSON.")] = False,
) -> int:
    """Look for the marks of results: 0 found, 1 none, 3 the file was changed since."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.verify import verify

    found = verify(file)
    print(json.dumps(found.plain(), indent=1) if as_json else "\n".join(found.lines()))
    return found.code


@app.command()
def describe(
    reference: Annotated[Path, typer.Option(help="Picture of the subject.")],
    driving: Annotated[Path, typer.Option(help="Clip whose motion the subject shall do.")],
    describer: Annotated[
        str, typer.Option(help="auto: the model named by DREAMACTOR_MLLM_*, if any; or offline.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="Of a local model: cpu, cuda or cuda:N.")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="All that is known, as JSON.")] = False,
) -> None:
    """Say what moves, who shall move, and both in the prompt that `animate` takes."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.conditioning.guidance import describe_files
    from dreamactor.mllm import choose

    texts = describe_files(reference, driving, choose(describer, device))
    if as_json:
        print(json.dumps(texts.plain(), indent=1, ensure_ascii=False))
        return
    for kind, source in texts.sources.items():
        print(f"{kind:12}{getattr(texts, kind)}  ({source})")


@app.command()
def backbones() -> None:
    """List the models: size, GPU memory, licence, and what of them is tested."""
    from dreamactor.backbones.catalogue import table

    print("\n".join(table()))


@app.command()
def doctor() -> None:
    """Say what this machine can run, and with which settings."""
    from dreamactor.doctor import look, report

    for line in report(look()):
        print(line)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("demo_out"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Do everything again, whatever is there.")
    ] = False,
) -> None:
    """Animate the examples that ship with the package; the same command goes on."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.demo import play

    play(out, overwrite, say=lambda line: print(line, flush=True))


@app.command()
def reproduce(
    config: Annotated[Path, typer.Argument(help="YAML file, such as configs/reproduce.yaml.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="What differs: key=value or section.key=value ...")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the stages and their time, write nothing.")
    ] = False,
) -> None:
    """Do the whole recipe within a time budget, and write one report; the same command goes on."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.config import from_file
    from dreamactor.reproduce.settings import ReproduceConfig

    asked = from_file(ReproduceConfig, config, settings or [])
    from dreamactor.reproduce.chain import plan, reproduce

    if dry_run:
        print("\n".join(plan(asked)))
        return
    print(reproduce(asked, say=lambda line: print(line, flush=True)))


@app.command()
def serve(
    folder: ServeFolder,
    settings: Settings = None,
    host: ServeHost = "127.0.0.1",
    port: ServePort = 8700,
    name: ServeName = None,
    device: ServeDevice = None,
) -> None:
    """Animate over HTTP: a durable queue, one worker for each device, an API.

    The variable DREAMACTOR_TOKEN, if set, is the token that every request has to show.
    """
    _serve(folder, settings, host, port, name, device)


@app.command()
def studio(
    folder: ServeFolder,
    settings: Settings = None,
    host: ServeHost = "127.0.0.1",
    port: ServePort = 8700,
    name: ServeName = None,
    device: ServeDevice = None,
    data: Annotated[
        Path | None, typer.Option(help="Data set of `bootstrap pairs`, to review in a tab.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = True,
) -> None:
    """The same as serve, with a page in front of it: upload, trim, animate, compare, history."""
    _serve(folder, settings, host, port, name, device, page=True, data=data, browser=browser)


def _serve(
    folder: Path,
    settings: list[str] | None,
    host: str,
    port: int,
    names: list[str] | None,
    devices: list[str] | None,
    page: bool = False,
    data: Path | None = None,
    browser: bool = False,
) -> None:
    signal.signal(signal.SIGTERM, _interrupt)
    if sys.platform == "win32":
        raise ConfigError("serve and studio want Linux or macOS; on Windows they run inside WSL")
    from dreamactor.config import from_words
    from dreamactor.studio.settings import Setup

    setup = from_words(Setup, settings or [])
    try:
        from dreamactor.studio import server
    except ImportError as error:
        raise ConfigError(f"this needs {error.name}: pip install 'dreamactor[studio]'") from error
    from dreamactor.bootstrap.manifest import DataSet
    from dreamactor.studio.page import review_tab, studio, study_tab

    place = server.Place(folder, host, port, tuple(names or ()), tuple(devices or ("cpu",)))
    reviewed = None if data is None else DataSet(data)
    extend = [studio([review_tab(reviewed), study_tab()])] if page else []
    server.serve(
        place,
        setup,
        lambda line: print(line, flush=True),
        extend,
        ready=webbrowser.open if browser else lambda address: None,
    )
    if reviewed is not None:
        reviewed.write_manifest()


@train.command("nano-vae")
def train_nano_vae(
    out: RunOut,
    settings: Settings = None,
) -> None:
    """Train nano's autoencoder on a pool of pairs."""
    from dreamactor.config import from_words
    from dreamactor.training.nano_vae import VAETrainConfig, train_nano_vae

    print(train_nano_vae(from_words(VAETrainConfig, settings or []), out))


@train.command("nano-surface")
def train_nano_surface(
    out: RunOut,
    settings: Settings = None,
) -> None:
    """Teach nano's autoencoder where on the body each cell lies, on a pool of pairs."""
    from dreamactor.config import from_words
    from dreamactor.training.nano_surface import SurfaceTrainConfig, train_nano_surface

    print(train_nano_surface(from_words(SurfaceTrainConfig, settings or []), out))


@train.command("nano-placement")
def train_nano_placement(
    out: RunOut,
    settings: Settings = None,
) -> None:
    """Teach nano where a driver belongs beside a reference, on a pool of pairs."""
    from dreamactor.config import from_words
    from dreamactor.training.nano_placement import PlacementTrainConfig, train_nano_placement

    print(train_nano_placement(from_words(PlacementTrainConfig, settings or []), out))


@train.command("nano")
def train_nano(
    out: RunOut,
    settings: Settings = None,
) -> None:
    """Train nano's transformer on a pool of pairs."""
    from dreamactor.config import from_words
    from dreamactor.training.nano import NanoTrainConfig, train_nano

    print(train_nano(from_words(NanoTrainConfig, settings or []), out))


@train.command("nano-decoder")
def train_nano_decoder(
    out: RunOut,
    settings: Settings = None,
) -> None:
    """Teach nano's decoder to draw what its transformer generates, by what the reference shows."""
    from dreamactor.config import from_words
    from dreamactor.training.nano_decoder import DecoderTrainConfig, train_nano_decoder

    print(train_nano_decoder(from_words(DecoderTrainConfig, settings or []), out))


@train.command("nano-base")
def train_nano_base(
    out: RunOut,
    settings: Settings = None,
) -> None:
    """Train nano's transformer on single clips first, as an image-to-video model."""
    from dreamactor.config import from_words
    from dreamactor.training.nano import NanoBaseConfig, train_nano

    print(train_nano(from_words(NanoBaseConfig, settings or []), out))


@train.command("keypoints")
def train_keypoints(
    out: RunOut,
    settings: Settings = None,
) -> None:
    """Train the pose estimator of humans and animals on a pool of pairs."""
    from dreamactor.config import from_words
    from dreamactor.training.keypoints import KeypointTrainConfig, train_keypoints

    print(train_keypoints(from_words(KeypointTrainConfig, settings or []), out))


@train.command("cache")
def train_cache(
    task: Annotated[str, typer.Option(help="pose: skeletons drive; rgb: clips do.")],
    out: Annotated[Path, typer.Option(help="Folder of the examples; the same command goes on.")],
    settings: Settings = None,
    device: Annotated[str, typer.Option(help="auto or cpu.")] = "auto",
) -> None:
    """Encode the examples of a stage, from a pool, clips or triplets."""
    from dreamactor.backbones.load import Variant
    from dreamactor.config import from_words, parse
    from dreamactor.training.encode import CacheConfig, fill_cache

    checked = parse("task", task, Variant)
    print(fill_cache(from_words(CacheConfig, settings or []), checked, out, device))


@train.command("captions")
def train_captions(
    clips: Annotated[Path, typer.Argument(help="Folder of clips.")],
    describer: Annotated[
        str, typer.Option(help="auto: the model named by DREAMACTOR_MLLM_*, if any; or offline.")
    ] = "auto",
    device: Annotated[str, typer.Option(help="Of a local model: cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Write CLIP.txt beside every clip that has none: what it shows."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.mllm import choose
    from dreamactor.training.captions import write_captions

    print(write_captions(clips, choose(describer, device)))


@train.command("join")
def train_join(
    high: Annotated[Path, typer.Option(help="adapter.safetensors of expert=high.")],
    low: Annotated[Path, typer.Option(help="adapter.safetensors of expert=low.")],
    out: Annotated[Path, typer.Option(help="Adapter of both, for `animate --adapter`.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
) -> None:
    """Make one adapter of those of two experts."""
    from dreamactor.backbones.folder import quiet
    from dreamactor.image import check_output

    with quiet():
        from dreamactor.backbones.stacking import join

    check_output(out, overwrite)
    print(f"{out}: sha256 {join(high, low, out)}")


@train.command("check")
def train_check(cache: Annotated[Path, typer.Argument(help="Folder of examples.")]) -> None:
    """Look at every example of a cache; refuse damage, and drivers that are their targets."""
    from dreamactor.training.cache import check_cache

    print(check_cache(cache))


@train.command("pose")
def train_pose(
    out: RunOut,
    settings: Settings = None,
    dry_run: Dry = False,
) -> None:
    """Stage 1: an adapter that is driven by skeletons."""
    from dreamactor.config import from_words
    from dreamactor.training.stage import AdaptConfig

    _adapt(from_words(AdaptConfig, settings or []), "pose", out, dry_run)


@train.command("rgb")
def train_rgb(
    out: RunOut,
    settings: Settings = None,
    dry_run: Dry = False,
) -> None:
    """Stage 2: an adapter that is driven by clips, from the pose stage's."""
    from dreamactor.config import from_words
    from dreamactor.training.stage import RgbConfig

    _adapt(from_words(RgbConfig, settings or []), "rgb", out, dry_run)


def _adapt(config: AdaptConfig, variant: Variant, out: Path, dry_run: bool) -> None:
    """Train an adapter, or say what that would take."""
    if dry_run:
        from dreamactor.training.plan import plan

        print("\n".join(plan(config)))
        return
    from dreamactor.training.adapt import train_adapter

    print(train_adapter(config, variant, out))


@train.command("export")
def train_export(
    vae: Annotated[Path, typer.Option(help="vae.safetensors of a run.")],
    transformer: Annotated[Path, typer.Option(help="transformer.safetensors of a run.")],
    out: Annotated[Path, typer.Option(help="Weights folder, for `animate --weights`.")],
    steps: Annotated[int, typer.Option(min=1, help="Default sampling steps.")] = 4,
    shift: Annotated[float, typer.Option(min=1, help="Shift of the sampler's schedule.")] = 3.0,
) -> None:
    """Make a weights folder: matrices and kernels in 8-bit rows."""
    from dreamactor.training.export import export_nano

    size = export_nano(vae, transformer, out, steps, shift)
    print(f"{out}: {size / 1e6:.1f} MB")


@world.command("build")
def world_build(
    source: Annotated[Path, typer.Option(help="0 A.D.: public.zip, game folder or .deb.")],
    out: Annotated[Path, typer.Option(help="Cast pack to write.")],
    mini: Annotated[bool, typer.Option("--mini", help="Only the few that ship.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.")] = False,
) -> None:
    """Compile a cast pack from the art of the game 0 A.D."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.image import check_output
    from dreamactor.world.cast import summary
    from dreamactor.world.compile import build_cast

    check_output(out, overwrite)
    cast = build_cast(source, out, mini=mini, say=print)
    print(summary(cast))
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, sha256 {cast.digest}")


@world.command("sample")
def world_sample(
    out: Annotated[Path, typer.Option(help="Folder to write; see OUT/sheet.png.")],
    cast: Annotated[Path, typer.Option(help="Cast pack.")] = MINI,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    count: Annotated[int, typer.Option(help="Pairs.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files.")] = False,
) -> None:
    """Draw pairs: the same motion by two characters, as clips and on one sheet."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.world.cast import load_cast
    from dreamactor.world.samples import write_samples

    pairs = write_samples(load_cast(cast), out, split, count, seed, overwrite=overwrite)
    for index, pair in enumerate(pairs):
        print(f"{out / str(index)}: {pair.caption}")
    print(out / "sheet.png")


@world.command("bench")
def world_bench(
    cast: Annotated[Path, typer.Option(help="Cast pack.")] = MINI,
    processes: Annotated[int, typer.Option(help="Renderers at work.")] = 2,
    seconds: Annotated[float, typer.Option(help="Time for each measurement.")] = 10.0,
) -> None:
    """Measure clips a second: 16 frames of 256 x 256 with mask and joints."""
    from dreamactor.world.speed import measure

    for number in sorted({1, processes}):
        speed = measure(cast, number, seconds)
        many = "process" if number == 1 else "processes"
        print(f"{speed.rate:.2f} clips/s in {number} {many} on {speed.driver}")


@world.command("pool")
def world_pool(
    cast: Annotated[Path, typer.Option(help="Cast pack.")],
    out: Annotated[Path, typer.Option(help="Folder of the pool; the same command goes on.")],
    shards: Annotated[int, typer.Option(help="Shards of 32 pairs to make.")] = 100,
    processes: Annotated[int, typer.Option(help="Renderers at work.")] = 2,
    minutes: Annotated[float, typer.Option(help="Time budget.")] = 10.0,
    gpus: Annotated[int, typer.Option(help="EGL devices to spread over.")] = 1,
    first_gpu: Annotated[int, typer.Option(help="The first of them.")] = 0,
    room: Annotated[int, typer.Option(help="Shards that may lie there at once.")] = 1_000_000,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "train",
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
    frames: Annotated[int, typer.Option(help="Frames of a clip: 16, or 4 to start with.")] = 16,
    plural: Annotated[
        float, typer.Option(help="Share with several subjects, or half a body for a whole one.")
    ] = 0.0,
) -> None:
    """Render pairs to disk for training."""
    from dreamactor.training.pool import PoolConfig, fill

    config = PoolConfig(cast, split, seed, frames=frames, plural=plural)
    print(fill(out, config, range(shards), processes, minutes, gpus, room, first_gpu))


@world.command("export")
def world_export(
    cast: Annotated[Path, typer.Option(help="Cast pack.")],
    out: Annotated[Path, typer.Option(help="Folder to write; the same command goes on.")],
    settings: Settings = None,
) -> None:
    """Write clips of the world as plain folders, to train and judge other models on."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.config import from_words
    from dreamactor.world.export import ExportConfig, export_world

    export_world(cast, out, from_words(ExportConfig, settings or []))


@bench.command("nano")
def bench_nano(
    cast: Annotated[Path, typer.Option(help="Cast pack with a test split.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; the same command goes on.")],
    settings: Settings = None,
) -> None:
    """Motion transfer on held-out pairs, against the truth and the classical baselines."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.bench.motion import NanoBenchConfig, bench_nano
    from dreamactor.config import from_words

    print(bench_nano(cast, out, from_words(NanoBenchConfig, settings or [])))


@bench.command("variants")
def bench_variants(
    cast: Annotated[Path, typer.Option(help="Cast pack with a test split.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; the same command goes on.")],
    settings: Settings = None,
) -> None:
    """Adapters of both stages against the model that was trained on true pairs."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.bench.variants import VariantsBenchConfig, bench_variants
    from dreamactor.config import from_words

    print(bench_variants(cast, out, from_words(VariantsBenchConfig, settings or [])))


@bench.command("vae")
def bench_vae(
    cast: Annotated[Path, typer.Option(help="Cast pack with a test split.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; the same command goes on.")],
    settings: Settings = None,
) -> None:
    """What nano's autoencoder keeps of held-out clips, photographs and films."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.bench.reconstruction import VAEBenchConfig, bench_vae
    from dreamactor.config import from_words

    print(bench_vae(cast, out, from_words(VAEBenchConfig, settings or [])))


@bench.command("pose")
def bench_pose(
    cast: Annotated[Path, typer.Option(help="Cast pack with a test split.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; the same command goes on.")],
    settings: Settings = None,
) -> None:
    """How well pose estimators find the joints of held-out characters."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.bench.poses import PoseBenchConfig, bench_pose
    from dreamactor.config import from_words

    print(bench_pose(cast, out, from_words(PoseBenchConfig, settings or [])))


@bench.command("metrics")
def bench_metrics(
    cast: Annotated[Path, typer.Option(help="Cast pack with a test split.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; the same command goes on.")],
    settings: Settings = None,
) -> None:
    """What the metrics are worth: known damage, and rank correlation with the true error."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.bench.validation import MetricsBenchConfig, bench_metrics
    from dreamactor.config import from_words

    print(bench_metrics(cast, out, from_words(MetricsBenchConfig, settings or [])))


@bench.command("speed")
def bench_speed(
    out: Annotated[Path, typer.Option(help="Folder of the results; the same command goes on.")],
    settings: Settings = None,
) -> None:
    """Seconds and memory of a step by mode, against plain image-to-video and Wan-Animate."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.backbones.folder import quiet
    from dreamactor.config import from_words

    with quiet():
        from dreamactor.bench.speed import SpeedConfig, bench_speed

    print(bench_speed(out, from_words(SpeedConfig, settings or [])))


@bench.command("training")
def bench_training(
    out: Annotated[Path, typer.Option(help="Folder of the rows; other settings add to it.")],
    settings: Settings = None,
) -> None:
    """Seconds, memory and losses of a training step with random weights, on one GPU or several."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.backbones.folder import quiet
    from dreamactor.config import from_words

    with quiet():
        from dreamactor.training.measure import TrainingBenchConfig, bench_training

    print(bench_training(out, from_words(TrainingBenchConfig, settings or [])))


@bench.command("long")
def bench_long(
    cast: Annotated[Path, typer.Option(help="Cast pack with a test split.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; the same command goes on.")],
    settings: Settings = None,
) -> None:
    """How far colours, identity and sharpness drift over a minute, with and without guards."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.bench.long import LongConfig, bench_long
    from dreamactor.config import from_words

    print(bench_long(cast, out, from_words(LongConfig, settings or [])))


@bench.command("run")
def bench_run(
    suite: Annotated[Path, typer.Option(help="Suite: folder with suite.json.")],
    system: Annotated[
        str,
        typer.Option(
            help="nano or another backbone; copy, driving or warp; a folder of clips; or a "
            "command with {reference}, {driving} and {out} in it."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Run folder; systems add up, the same command goes on.")
    ],
    settings: Settings = None,
    name: Annotated[str | None, typer.Option(help="Of the system in tables.")] = None,
) -> None:
    """Let a system do a suite's cases, measure its clips, and write a report of all systems."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.bench.suite_run import RunConfig, bench_run
    from dreamactor.config import from_words

    print(bench_run(suite, system, out, name, from_words(RunConfig, settings or [])))


@bench.command("judge")
def bench_judge(
    suite: Annotated[Path, typer.Option(help="Folder of a suite.")],
    clips: Annotated[Path, typer.Option(help="Results: CLIPS/SYSTEM/CASE.mp4.")],
    out: Annotated[Path, typer.Option(help="Folder of the scores; the same command goes on.")],
    settings: Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it takes.")] = False,
) -> None:
    """Score clips from 1 to 5 by the model that DREAMACTOR_MLLM_* name, as Video-Bench does."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.bench.judge import JudgeConfig, judge_suite
    from dreamactor.config import from_words

    config = from_words(JudgeConfig, settings or [])
    print(judge_suite(suite, clips, out, config, dry_run=dry_run, say=print))


@bench.command("calibrate")
def bench_calibrate(
    suite: Annotated[Path, typer.Option(help="Folder of a suite with truths.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; the same command goes on.")],
    settings: Settings = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what it takes.")] = False,
) -> None:
    """Hold a judge against truths that were damaged: may it be trusted, and for what?"""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.bench.calibration import CalibrateConfig, calibrate
    from dreamactor.config import from_words

    config = from_words(CalibrateConfig, settings or [])
    print(calibrate(suite, out, config, dry_run=dry_run, say=print))


@bench.command("world")
def bench_world(
    cast: Annotated[Path, typer.Option(help="Cast pack with a test split.")],
    out: Annotated[Path, typer.Option(help="Folder of the suite; the same command goes on.")],
    settings: Settings = None,
) -> None:
    """Draw AW Bench World: clips, references and truths of the held-out cast, as a suite."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.bench.world_suite import WorldSuiteConfig, build_suite
    from dreamactor.config import from_words

    digest = build_suite(cast, out, from_words(WorldSuiteConfig, settings or []))
    print(f"{out}: sha256 of the manifest {digest}")


@bench.command("validate")
def bench_validate(
    suite: Annotated[Path, typer.Argument(help="Folder of a suite.")],
) -> None:
    """Look at every file of a suite; print each fault, and what the suite covers."""
    from dreamactor.bench.coverage import coverage
    from dreamactor.bench.manifest import digest_of, load_suite
    from dreamactor.bench.validate import faults_of
    from dreamactor.errors import ConfigError

    found = load_suite(suite)
    faults = list(faults_of(found))
    for fault in faults:
        print(fault)
    print(coverage(found))
    if faults:
        raise ConfigError(f"{suite}: {len(faults)} faults, listed above")
    print(f"{suite}: no fault; sha256 of the manifest {digest_of(suite)}")


@bench.command("report")
def bench_report(
    out: Annotated[Path, typer.Option(help="Page to write, such as docs/results.md.")],
    nano: Annotated[Path | None, typer.Option(help="Folder of a `bench nano`.")] = None,
    vae: Annotated[Path | None, typer.Option(help="Folder of a `bench vae`.")] = None,
    pose: Annotated[Path | None, typer.Option(help="Folder of a `bench pose`.")] = None,
    long: Annotated[Path | None, typer.Option(help="Folder of a `bench long`.")] = None,
) -> None:
    """Put the reports of finished runs on one page."""
    from dreamactor.bench.page import results_page

    print(results_page(out, {"nano": nano, "vae": vae, "pose": pose, "long": long}))


@bootstrap.command("pairs")
def bootstrap_pairs(
    out: Annotated[Path, typer.Option(help="Data set; the same command goes on.")],
    sources: Annotated[
        Path | None, typer.Option(help="Folder of clips, with --references.")
    ] = None,
    references: Annotated[Path | None, typer.Option(help="Folder of pictures of others.")] = None,
    cast: Annotated[Path | None, typer.Option(help="Or a cast pack: pairs of the world.")] = None,
    settings: Settings = None,
) -> None:
    """Put the motion of every source clip onto new identities."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.bootstrap.pairs import PairsConfig, run_pairs
    from dreamactor.config import from_words

    print(run_pairs(out, sources, references, cast, from_words(PairsConfig, settings or [])))


@bootstrap.command("filter")
def bootstrap_filter(
    data: Annotated[Path, typer.Option(help="Data set of `bootstrap pairs`.")],
    judge: Annotated[
        str, typer.Option(help="measured, or mllm: the model named by DREAMACTOR_MLLM_*.")
    ] = "measured",
    scales: Annotated[Path | None, typer.Option(help="gate.json of `bootstrap calibrate`.")] = None,
    threshold: Annotated[float, typer.Option(help="What the average has to exceed.")] = 4.5,
    device: Annotated[str, typer.Option(help="Of a local model: cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Score every item, 1 to 5 four times, by what can be measured or a model sees; gate it."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.bootstrap.judge import run_gate

    print(run_gate(data, judge, scales, threshold, device))


@bootstrap.command("review")
def bootstrap_review(
    data: Annotated[Path, typer.Option(help="Data set, gated.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 = any that is free.")] = 8765,
    judge: Annotated[str, typer.Option(help="Whose gate counts.")] = "measured",
    everything: Annotated[bool, typer.Option("--all", help="Also what the gate refused.")] = False,
) -> None:
    """Serve the review page: source, reference and result side by side, by keyboard."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.bootstrap.manifest import DataSet
    from dreamactor.bootstrap.review import agreement_lines, serve

    found = DataSet(data)
    serve(found, None if everything else judge, host, port, lambda line: print(line, flush=True))
    for line in agreement_lines(found):
        print(line)


@bootstrap.command("triplets")
def bootstrap_triplets(
    data: Annotated[Path, typer.Option(help="Data set, gated and reviewed.")],
    judge: Annotated[str, typer.Option(help="Whose gate counts.")] = "measured",
    reviewers: Annotated[int, typer.Option(min=1, help="People who must have accepted.")] = 1,
    describer: Annotated[
        str, typer.Option(help="Of targets without a caption: auto or offline, as of animate.")
    ] = "auto",
) -> None:
    """List the training samples: V_o drives, V_src[0] is the reference, V_src the target."""
    from dreamactor.bootstrap.manifest import DataSet
    from dreamactor.bootstrap.review import agreement_lines
    from dreamactor.mllm import choose

    found = DataSet(data)
    path, count = found.write_triplets(judge, reviewers, choose(describer))
    for line in agreement_lines(found):
        print(line)
    print(f"{path}: {count} triplets of {len(found.items())} items")


@bootstrap.command("calibrate")
def bootstrap_calibrate(
    cast: Annotated[Path, typer.Option(help="Cast pack with validation and test splits.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; the same command goes on.")],
    settings: Settings = None,
) -> None:
    """Set the gate's scales on pairs with known faults, and hold it against the truth."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.bootstrap.calibrate import CalibrateConfig, calibrate
    from dreamactor.config import from_words

    print(calibrate(cast, out, from_words(CalibrateConfig, settings or [])))


@study.command("make")
def study_make(
    suite: Annotated[Path, typer.Option(help="Suite whose cases are shown.")],
    clips: Annotated[Path, typer.Option(help="Folder with a folder of results per system.")],
    out: Annotated[Path, typer.Option(help="Study; the same command goes on.")],
    settings: Settings = None,
) -> None:
    """Plan a study and write its clips under names that say nothing."""
    signal.signal(signal.SIGTERM, _interrupt)
    from dreamactor.bench.study.design import StudyConfig
    from dreamactor.bench.study.make import make_study, summary
    from dreamactor.config import from_words

    print(summary(make_study(suite, clips, out, from_words(StudyConfig, settings or []))))


@study.command("serve")
def study_serve(
    root: Annotated[Path, typer.Argument(help="Study of `study make`.", metavar="STUDY")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 = any that is free.")] = 8770,
) -> None:
    """Serve the raters' page, and print every rater's link."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        from dreamactor.bench.study.server import serve
    except ImportError as error:
        from dreamactor.errors import ConfigError

        wanted = f"the page needs {error.name}: pip install 'dreamactor[review]'"
        raise ConfigError(wanted) from error
    serve(root, host, port, lambda line: print(line, flush=True))


@study.command("report")
def study_report(
    root: Annotated[Path, typer.Argument(help="Study with answers.", metavar="STUDY")],
    out: Annotated[Path | None, typer.Option(help="Page; default report.md in STUDY.")] = None,
    without: Annotated[
        list[int] | None, typer.Option(help="Number of a rater who wants to be left out.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
) -> None:
    """Means, shares, intervals and agreement of the answers that count."""
    from dreamactor.bench.study.report import report_study

    print(report_study(root, out, without or (), seed))


def main() -> None:
    """Run a command; faults of the user are one line and exit code 2, Ctrl-C and SIGTERM 130."""
    try:
        code = app(standalone_mode=False)
    except DreamActorError as error:
        _fail(str(error))
    except TyperException as error:
        if not error.format_message():  # a group without a command has shown its help
            sys.exit(2)
        _fail(error.format_message())
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    sys.exit(2)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
