"""Draw scenes: the same motion on any character, with exact joints, masks, flow and depth.

All frames of a clip are drawn into one tall strip of tiles with one instanced call per mesh;
bones and cameras of all frames come from two float textures. Works on any OpenGL 3.3 driver
that EGL reaches, Mesa's llvmpipe included; one context a `Renderer`, opened on first use,
so that it may be made before a fork.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import moderngl
import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import AssetError, ConfigError
from dreamactor.world import shaders
from dreamactor.world.backdrops import backdrop
from dreamactor.world.cast import Array, Cast, Look, Part
from dreamactor.world.pose import skinning
from dreamactor.world.scene import Actor, Background, Joints, Rendered, Scene
from dreamactor.world.tables import camera_table, recolour, vertices

CLIP_DISTANCES = range(0x3000, 0x3004)  # GL_CLIP_DISTANCE0 .. 3: the borders of a tile
SAMPLES = 4
STRIP_ROWS = 8192  # pixels; every driver allows 8192, and longer clips take several strips


@dataclass(frozen=True)
class _Drawable:
    """Vertex arrays of one mesh, one a program."""

    shade: moderngl.VertexArray
    hull: moderngl.VertexArray
    truth: moderngl.VertexArray
    surface: moderngl.VertexArray


@dataclass(frozen=True)
class _Strip:
    """Framebuffers for tiles of one size."""

    rows: int
    samples: moderngl.Texture
    drawn: moderngl.Framebuffer
    resolved: moderngl.Framebuffer


def open_context(device: int | None = None) -> moderngl.Context:
    """A headless OpenGL 3.3 context.

    Args:
        device: EGL device index, for machines with several GPUs; by default the environment
            variable DREAMACTOR_EGL_DEVICE, else the driver's choice.
    """
    index = os.environ.get("DREAMACTOR_EGL_DEVICE") if device is None else str(device)
    options: dict[str, Any] = {"backend": "egl", "libegl": "libEGL.so.1"}
    if index is not None:
        if not index.isdigit():
            raise ConfigError(f"DREAMACTOR_EGL_DEVICE={index!r}: want a device number, such as 0")
        options["device_index"] = int(index)
    faults = []
    # Slim driver images have libGL in pieces, or under its versioned name only.
    for libgl in ("libGL.so.1", "libOpenGL.so.0", "libGL.so"):
        try:
            options["libgl"] = libgl
            return moderngl.create_context(require=330, standalone=True, **options)
        except Exception as fault:  # glcontext raises bare Exception
            faults.append(str(fault))
    raise AssetError(
        f"no OpenGL through EGL ({faults[0]}): install it, on Debian and Ubuntu by "
        "apt-get install libegl1 libgl1 libgl1-mesa-dri (Mesa draws on the CPU)"
    )


class Renderer:
    """Draws scenes of one cast; holds the OpenGL context and all that is cached in it."""

    def __init__(self, cast: Cast, device: int | None = None) -> None:
        self.cast = cast
        self._device = device
        self._context: moderngl.Context | None = None
        self._drawables: dict[str, _Drawable] = {}
        self._textures: dict[str, moderngl.Texture] = {}
        self._strips: dict[tuple[int, int], _Strip] = {}
        self._exacts: dict[tuple[int, int], moderngl.Framebuffer] = {}
        self._backdrops: dict[Any, moderngl.Texture] = {}
        self._depths: dict[str, Array] = {}

    @property
    def context(self) -> moderngl.Context:
        """The OpenGL context, opened on first use."""
        if self._context is None:
            ctx = self._context = open_context(self._device)
            for border in CLIP_DISTANCES:
                ctx.enable_direct(border)
            ctx.front_face = "cw"  # rows run downwards
            program = ctx.program
            self._shade = program(shaders.SHADE_VERTEX, shaders.SHADE_FRAGMENT)
            self._hull = program(shaders.HULL_VERTEX, shaders.HULL_FRAGMENT)
            self._truth = program(shaders.TRUTH_VERTEX, shaders.TRUTH_FRAGMENT)
            self._surface = program(shaders.SURFACE_VERTEX, shaders.SURFACE_FRAGMENT)
            self._resolve = program(shaders.RESOLVE_VERTEX, shaders.RESOLVE_FRAGMENT)
            self._screen = ctx.vertex_array(self._resolve, [])
            for drawing in (self._shade, self._hull, self._truth, self._surface):
                _set(drawing, bones=0, frames=1, albedo=2)
            _set(self._resolve, strip=0, frames=1, backdrop=2, terrain=3)
        return self._context

    @property
    def driver(self) -> str:
        """Name of the device that draws."""
        return str(self.context.info["GL_RENDERER"])

    # ---- drawing --------------------------------------------------------------------------

    def render(self, scene: Scene, truth: Literal["none", "visible", "all"] = "none") -> Rendered:
        """Draw a clip.

        Args:
            scene: What to draw; T frames of H x W.
            truth: none = picture, mask and joints; visible = joints hidden behind a surface
                are marked; all = flow and depth too. The last two draw the clip once more.

        Returns:
            See `Rendered`.
        """
        with self.context:  # another renderer of this process may have been the last to draw
            return self._render(scene, truth)

    def surface(self, scene: Scene) -> Array:
        """Which spot of its body every pixel shows, the same whatever the pose and the style.

        Returns:
            (T, H, W, 3) metres in the bind pose, of the surface at pixel centres; NaN on the
            background. Outlines of toon actors are not drawn.
        """
        height, width, count = scene.height, scene.width, scene.frames
        out = np.empty((count, height, width, 4), dtype=np.float32)
        with self.context:
            bones, frames = self._upload(scene)
            bones.use(0)
            frames.use(1)
            for first, number in _strips(scene):
                self._draw_exact(self._surface, scene, first, number, out[first : first + number])
            bones.release()
            frames.release()
        return np.where(out[..., 3:] > 0, out[..., :3], np.float32(np.nan))

    def _render(self, scene: Scene, truth: str) -> Rendered:
        ctx = self.context
        bones, frames = self._upload(scene)
        bones.use(0)
        frames.use(1)
        height, width, count = scene.height, scene.width, scene.frames
        rgb = np.empty((count, height, width, 3), dtype=np.uint8)
        mask = np.empty((count, height, width), dtype=np.uint8)
        truths = np.empty((count, height, width, 4), dtype=np.float32) if truth != "none" else None
        for first, number in _strips(scene):
            view = (0, 0, width, number * height)
            strip = self._strip(width, number * height)
            strip.drawn.use()
            ctx.viewport = view
            ctx.enable(moderngl.DEPTH_TEST)
            strip.drawn.clear(0, 0, 0, 0)
            self._draw_picture(scene, first, number)
            strip.resolved.use()
            ctx.viewport = view
            ctx.disable(moderngl.DEPTH_TEST | moderngl.CULL_FACE)
            strip.samples.use(0)
            self._prepare_background(scene)
            _set(self._resolve, first=first, count=number, size=(width, height))
            self._screen.render(moderngl.TRIANGLE_STRIP, vertices=4, instances=number)
            # Two reads: the driver packs faster than numpy would cut the mask out of RGBA.
            strip.resolved.read_into(rgb[first : first + number], view, components=3)
            strip.resolved.read_into(mask[first : first + number], view, 1, attachment=1)
            bones.use(0)
            if truths is not None:
                part = truths[first : first + number]
                self._draw_truth(scene, first, number, part)
        bones.release()
        frames.release()
        depth = truths[..., 2] if truths is not None else None
        return self._rendered(scene, rgb, mask, truths if truth == "all" else None, depth)

    def _draw_picture(self, scene: Scene, first: int, number: int) -> None:
        """Draw all actors into the bound strip."""
        light = scene.light
        towards = np.asarray(light.direction, dtype=np.float32)
        if light.follow:
            right, _, back = scene.camera.basis()[0]
            flat = np.array([back[0], 0, back[2]]) / max(float(np.hypot(back[0], back[2])), 1e-6)
            towards = right * towards[0] + np.array([0, towards[1], 0]) + flat * towards[2]
        towards = towards / np.linalg.norm(towards)
        gain = light.exposure
        _set(
            self._shade,
            first=first,
            count=number,
            sun=tuple(map(float, towards)),
            sun_light=_scaled(light.colour, light.strength * gain),
            sky_light=_scaled(light.sky, light.ambient * gain),
            ground_light=_scaled(light.ground, light.ambient * gain),
        )
        _set(self._hull, first=first, count=number)
        middle_fov = float(np.median(scene.camera.fov))
        for index, actor in enumerate(scene.actors):
            toon = actor.style.kind == "toon"
            row, ident = index * scene.frames, (index + 1) / 255
            tint = tuple(actor.tint or actor.look.tint)
            human = actor.look.domain == "human"
            _set(
                self._shade,
                row=row,
                id=ident,
                tint=tint,
                toon=toon,
                bands=float(actor.style.bands),
                keep_skin=actor.style.keep_skin and human,
            )
            for place, part in enumerate(actor.look.parts):
                if part.role in actor.drop:
                    continue
                self._cull(part)
                self._texture(part.texture).use(2)
                _set(
                    self._shade,
                    cutout=part.cutout,
                    # Beasts of war wear the colour on what they carry, not in their fur.
                    tinted=not part.cutout and (human or part.role != "body"),
                    recolour=recolour(actor.style, place, part),
                )
                self._drawable(part.mesh).shade.render(instances=number)
            if toon and actor.style.outline > 0:
                width = actor.style.outline / 256 * 2 * np.tan(np.radians(middle_fov) / 2)
                _set(self._hull, row=row, id=ident, width=float(width))
                self._draw_hulls(actor, number)

    def _draw_hulls(self, actor: Actor, number: int) -> None:
        """Draw the outlines of a toon actor."""
        ctx = self.context
        size = float(np.cbrt(np.linalg.det(actor.pose[0, 0, :3, :3])))
        ctx.cull_face = "front"
        for part in actor.look.parts:
            if part.role in actor.drop:
                continue
            sheet = part.double_sided or part.cutout
            (ctx.disable if sheet else ctx.enable)(moderngl.CULL_FACE)
            self._texture(part.texture).use(2)
            _set(self._hull, cutout=part.cutout, push=size * (0.05 if sheet else 0.012))
            self._drawable(part.mesh).hull.render(instances=number)
        ctx.cull_face = "back"

    def _draw_truth(self, scene: Scene, first: int, number: int, out: Array) -> None:
        """Draw flow, depth and actor at pixel centres; read them into (number, H, W, 4)."""
        half = (scene.width / 2, scene.height / 2)
        _set(self._truth, last=scene.frames - 1, half_size=half)
        self._draw_exact(self._truth, scene, first, number, out)

    def _draw_exact(
        self, program: moderngl.Program, scene: Scene, first: int, number: int, out: Array
    ) -> None:
        """Draw what a program says of pixel centres; read it into (number, H, W, 4)."""
        ctx = self.context
        view = (0, 0, scene.width, number * scene.height)
        target = self._exact_target(scene.width, number * scene.height)
        target.use()
        ctx.viewport = view
        ctx.enable(moderngl.DEPTH_TEST)
        target.clear(0, 0, 0, 0)
        _set(program, first=first, count=number)
        for index, actor in enumerate(scene.actors):
            _set(program, row=index * scene.frames, id=float(index + 1))
            for part in actor.look.parts:
                if part.role in actor.drop:
                    continue
                self._cull(part)
                self._texture(part.texture).use(2)
                _set(program, cutout=part.cutout)
                drawable = self._drawable(part.mesh)
                array = drawable.truth if program is self._truth else drawable.surface
                array.render(instances=number)
        target.read_into(out, view, components=4, dtype="f4")

    def _cull(self, part: Part) -> None:
        (self.context.disable if part.double_sided else self.context.enable)(moderngl.CULL_FACE)

    def _prepare_background(self, scene: Scene) -> None:
        """Bind the backdrop or terrain and set what the resolve pass wants to know."""
        background = scene.background
        outdoors = background.kind == "terrain"
        if outdoors:
            self._texture(background.texture).use(3)
        else:
            self._backdrop(background, scene.height, scene.width).use(2)
        colours = background.colours
        _set(
            self._resolve,
            outdoors=outdoors,
            tile=background.tile,
            horizon=tuple(colours[-1]),
            zenith=tuple(colours[0]),
        )

    # ---- what goes in ---------------------------------------------------------------------

    def _upload(self, scene: Scene) -> tuple[moderngl.Texture, moderngl.Texture]:
        """Bones (rows = actors * T) and cameras (rows = T) as float textures."""
        ctx = self.context
        skins = [
            skinning(self.cast.skeletons[actor.look.skeleton], actor.pose)[:, :, :3]
            for actor in scene.actors
        ]
        widest = max((skin.shape[1] for skin in skins), default=1)
        rows = np.zeros((max(len(skins), 1) * scene.frames, widest * 3, 4), dtype=np.float32)
        for index, skin in enumerate(skins):
            block = rows[index * scene.frames : (index + 1) * scene.frames]
            block[:, : 3 * skin.shape[1]] = skin.reshape(scene.frames, -1, 4)
        table = camera_table(self.cast, scene)
        nearest = (moderngl.NEAREST, moderngl.NEAREST)
        out = []
        for array in (rows, table):
            size = (array.shape[1], array.shape[0])
            texture = ctx.texture(size, 4, array.tobytes(), dtype="f4", alignment=4)
            texture.filter = nearest
            out.append(texture)
        return out[0], out[1]

    def _drawable(self, name: str) -> _Drawable:
        if name not in self._drawables:
            ctx = self.context
            mesh = self.cast.meshes[name]
            points = ctx.buffer(vertices(mesh).tobytes())
            index = ctx.buffer(np.ascontiguousarray(mesh.faces, dtype=np.uint32).tobytes())
            layout = "3f 3f 3f 2f 4u1 4f"
            names = ("in_position", "in_normal", "in_smooth", "in_uv", "in_bones", "in_weights")

            def array(program: moderngl.Program) -> moderngl.VertexArray:
                present = set(program)
                text = " ".join(
                    item if name in present else _skipped(item)
                    for item, name in zip(layout.split(), names, strict=True)
                )
                used = [name for name in names if name in present]
                return ctx.vertex_array(program, [(points, text, *used)], index)

            self._drawables[name] = _Drawable(
                array(self._shade), array(self._hull), array(self._truth), array(self._surface)
            )
        return self._drawables[name]

    def _texture(self, name: str) -> moderngl.Texture:
        if name not in self._textures:
            if name not in self.cast.textures:
                raise AssetError(f"texture {name!r} is not in the cast pack")
            image = np.ascontiguousarray(self.cast.texture(name))
            size = (image.shape[1], image.shape[0])
            texture = self.context.texture(size, 4, image.tobytes(), alignment=4)
            texture.build_mipmaps()
            texture.filter = (moderngl.LINEAR_MIPMAP_LINEAR, moderngl.LINEAR)
            if "llvmpipe" not in self.driver:  # where it costs seconds a clip
                texture.anisotropy = min(4.0, self.context.max_anisotropy)
            self._textures[name] = texture
        return self._textures[name]

    def _backdrop(self, background: Background, height: int, width: int) -> moderngl.Texture:
        image = id(background.image) if background.image is not None else None
        key = (
            background.kind, background.colours, background.seed, background.scale,
            image, height, width,
        )  # fmt: skip
        # A picture is recognised by identity, which another may inherit: never keep it.
        if image is not None and key in self._backdrops:
            self._backdrops.pop(key).release()
        if key not in self._backdrops:
            if len(self._backdrops) >= 64:
                self._backdrops.pop(next(iter(self._backdrops))).release()
            picture = backdrop(background, height, width)
            texture = self.context.texture((width, height), 3, picture.tobytes(), alignment=1)
            texture.repeat_x = texture.repeat_y = False
            self._backdrops[key] = texture
        return self._backdrops[key]

    def _strip(self, width: int, rows: int) -> _Strip:
        for (w, r), strip in self._strips.items():
            if w == width and r >= rows:
                return strip
        ctx, size = self.context, (width, rows)
        if len(self._strips) > 8:  # many sizes in one process: start over
            self._strips.clear()
        samples = ctx.texture(size, 4, samples=SAMPLES)
        drawn = ctx.framebuffer([samples], ctx.depth_renderbuffer(size, samples=SAMPLES))
        resolved = ctx.framebuffer([ctx.texture(size, 4), ctx.texture(size, 1)])
        self._strips[size] = _Strip(rows, samples, drawn, resolved)
        return self._strips[size]

    def _exact_target(self, width: int, rows: int) -> moderngl.Framebuffer:
        for (w, r), target in self._exacts.items():
            if w == width and r >= rows:
                return target
        ctx, size = self.context, (width, rows)
        target = ctx.framebuffer([ctx.texture(size, 4, dtype="f4")], ctx.depth_renderbuffer(size))
        self._exacts[size] = target
        return target

    # ---- what comes out -------------------------------------------------------------------

    def _rendered(
        self,
        scene: Scene,
        rgb: NDArray[np.uint8],
        mask: NDArray[np.uint8],
        truths: Array | None,
        depth: Array | None,
    ) -> Rendered:
        joints = tuple(self._joints(scene, actor, depth) for actor in scene.actors)
        if truths is None:
            return Rendered(rgb, mask, joints)
        flow = np.ascontiguousarray(truths[:-1, ..., :2])
        return Rendered(rgb, mask, joints, flow, np.ascontiguousarray(truths[..., 2]))

    def _joints(self, scene: Scene, actor: Actor, depth: Array | None) -> Joints:
        skeleton = self.cast.skeletons[actor.look.skeleton]
        names = tuple(skeleton.joints)
        index = [skeleton.joints[name] for name in names]
        height, width = scene.height, scene.width
        pixels, away = scene.camera.project(actor.pose[:, index][..., :3, 3], height, width)
        x, y = np.floor(pixels[..., 0]).astype(int), np.floor(pixels[..., 1]).astype(int)
        visible = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (away > 0.1)
        if depth is not None:
            frame = np.arange(scene.frames)[:, None]
            seen = depth[frame, np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
            size = float(np.cbrt(np.linalg.det(actor.pose[0, 0, :3, :3])))
            slack = 0.06 + 1.5 * self._flesh(actor.look) * size
            visible &= (seen == 0) | (seen > away - slack)
        return Joints(names, pixels, away, visible)

    def _flesh(self, look: Look) -> Array:
        """(N,) metres from each joint to the skin about it, in the bind pose."""
        if look.name not in self._depths:
            skeleton = self.cast.skeletons[look.skeleton]
            body = [part for part in look.parts if part.role in ("body", "head")]
            meshes = [self.cast.meshes[part.mesh] for part in body or look.parts]
            points = np.concatenate([mesh.positions for mesh in meshes])
            at = skeleton.bind_position[list(skeleton.joints.values())]
            apart = np.linalg.norm(points[None] - at[:, None], axis=-1)  # (N, V)
            nearest = np.sort(apart, axis=1)[:, :8]
            self._depths[look.name] = nearest.mean(axis=1).astype(np.float32)
        return self._depths[look.name]


def _strips(scene: Scene) -> Iterator[tuple[int, int]]:
    """(first frame, number of frames) of each strip that a clip is drawn into."""
    tiles = max(1, STRIP_ROWS // scene.height)
    for first in range(0, scene.frames, tiles):
        yield first, min(tiles, scene.frames - first)


def _scaled(colour: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def _skipped(item: str) -> str:
    """The padding that stands for a vertex attribute a program does not read."""
    return {"3f": "12x", "2f": "8x", "4f": "16x", "4u1": "4x"}[item]


def _set(program: moderngl.Program, **values: Any) -> None:
    """Set uniforms; drivers drop unused ones, which is no fault."""
    for name, value in values.items():
        uniform = program.get(name, None)  # `in` would search all of them
        if isinstance(uniform, moderngl.Uniform):
            uniform.value = value
