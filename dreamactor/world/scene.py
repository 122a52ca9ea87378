"""What a picture is made of: actors, camera, light, background - and what comes back.

Axes as in `cast`: right-handed, y up, metres, the ground is y = 0. Colours are sRGB in
[0, 1]. Angles are degrees unless a name says radians. T frames, J bones, image H x W.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dreamactor.errors import ConfigError, ShapeError
from dreamactor.world.cast import Array, Look

Colour = tuple[float, float, float]


@dataclass(frozen=True)
class Camera:
    """A perspective camera for every frame."""

    eye: Array  # (T, 3) metres
    target: Array  # (T, 3) metres, what the optical axis meets
    fov: Array  # (T,) degrees from the top to the bottom edge
    shift: Array
    """(T, 2) where the target appears, x right and y up, in halves of the frame ([-1, 1]);
    a lens shift, so it moves the picture without turning the camera."""

    def __post_init__(self) -> None:
        count = len(self.eye)
        shapes = (self.eye.shape, self.target.shape, self.fov.shape, self.shift.shape)
        if shapes != ((count, 3), (count, 3), (count,), (count, 2)):
            raise ShapeError(f"camera arrays have shapes {shapes}: want (T,3) (T,3) (T,) (T,2)")

    def basis(self) -> Array:
        """(T, 3, 3) rows: right, up and back (towards the camera) in the world."""
        back = self.eye - self.target
        back = back / np.linalg.norm(back, axis=-1, keepdims=True)
        right = np.cross(np.array([0, 1, 0], dtype=np.float32), back)
        right = right / np.maximum(np.linalg.norm(right, axis=-1, keepdims=True), 1e-9)
        axes = np.stack([right, np.cross(back, right), back], axis=1)
        return np.asarray(axes, dtype=np.float32)

    def view(self) -> Array:
        """(T, 4, 4) world to camera; the camera looks along -z."""
        out = np.zeros((len(self.eye), 4, 4), dtype=np.float32)
        out[:, :3, :3] = self.basis()
        out[:, :3, 3] = -np.einsum("tab,tb->ta", out[:, :3, :3], self.eye)
        out[:, 3, 3] = 1
        return out

    def projection(self, aspect: float, near: float = 0.1, far: float = 300.0) -> Array:
        """(T, 4, 4) camera to clip space; aspect = W / H."""
        focal = 1 / np.tan(np.radians(self.fov) / 2)
        out = np.zeros((len(self.eye), 4, 4), dtype=np.float32)
        out[:, 0, 0] = focal / aspect
        out[:, 1, 1] = focal
        out[:, :2, 2] = -self.shift
        out[:, 2, 2] = (far + near) / (near - far)
        out[:, 2, 3] = 2 * far * near / (near - far)
        out[:, 3, 2] = -1
        return out

    def project(self, points: Array, height: int, width: int) -> tuple[Array, Array]:
        """Pixels and depths of points (T, N, 3).

        Returns:
            pixels (T, N, 2): x right, y down; the top left pixel's centre is (0.5, 0.5).
            depth (T, N): metres along the optical axis.
        """
        clip = self.projection(width / height) @ self.view()  # (T, 4, 4)
        at = np.einsum("tab,tnb->tna", clip[:, :, :3], points) + clip[:, None, :, 3]
        depth = at[..., 3]
        ndc = at[..., :2] / np.where(np.abs(depth) < 1e-6, 1e-6, depth)[..., None]
        x, y = (ndc[..., 0] + 1) * width / 2, (1 - ndc[..., 1]) * height / 2
        return np.stack([x, y], axis=-1).astype(np.float32), depth.astype(np.float32)


@dataclass(frozen=True)
class Light:
    """One sun, a hemisphere of sky and ground light, and soft shadows on the ground."""

    direction: tuple[float, float, float] = (0.45, 0.8, 0.6)
    """Towards the sun; relative to the camera's heading when `follow` is set: +x is the
    camera's right, +z towards the camera."""
    colour: Colour = (1.0, 0.96, 0.9)
    strength: float = 1.0
    sky: Colour = (0.72, 0.76, 0.84)
    ground: Colour = (0.50, 0.46, 0.42)
    ambient: float = 0.85
    follow: bool = True
    """Turn the light with the first frame's camera, so that faces are lit from its side."""
    shadow: float = 0.45
    """Darkness of the soft shadow on the ground, 0 = none."""
    exposure: float = 1.35
    """Factor on all light; 0 A.D. textures are painted dark."""


@dataclass(frozen=True)
class Background:
    """What lies behind the actors.

    plain, gradient (`colours` bottom to top), noise, stripes, checker, bokeh and image are flat
    backdrops that stay fixed in the frame. terrain is a textured ground plane under a sky; it
    moves with the camera.
    """

    kind: Literal[
        "plain", "gradient", "noise", "stripes", "checker", "bokeh", "terrain", "image"
    ] = "plain"
    colours: tuple[Colour, ...] = ((0.62, 0.66, 0.70), (0.86, 0.89, 0.92))
    """One or more; gradient and sky run from the first to the last."""
    seed: int = 0
    scale: float = 1.0
    """Size of a pattern's elements."""
    texture: str = ""
    """Terrain: name in `Cast.textures`."""
    tile: float = 8.0
    """Terrain: metres covered by one repeat of the texture."""
    image: NDArray[np.uint8] | None = None
    """Image: (h, w, 3), resized and centre-cropped to the frame."""

    def __post_init__(self) -> None:
        if self.kind == "image" and self.image is None:
            raise ConfigError("background kind='image' has no image: want (h, w, 3) uint8")
        if self.kind == "terrain" and not self.texture:
            raise ConfigError("background kind='terrain' has no texture: want one of cast.terrains")


@dataclass(frozen=True)
class Style:
    """How surfaces are painted."""

    kind: Literal["textured", "toon"] = "textured"
    recolour: float = 0.0
    """0 keeps the textures' hues; 1 turns them freely, part by part."""
    seed: int = 0
    """Draws of `recolour`."""
    keep_skin: bool = True
    """Leave skin-like hues as they are when recolouring a human."""
    outline: float = 1.6
    """Toon: width of the dark outline, in 256ths of the frame height; 0 = none."""
    bands: int = 3
    """Toon: steps of light."""


@dataclass(frozen=True)
class Actor:
    """One character in a scene, moving."""

    look: Look
    pose: Array
    """(T, J, 4, 4) bone-to-world matrices, already placed in the world (`pose.place`)."""
    style: Style = Style()
    drop: frozenset[str] = frozenset()
    """Roles of parts that are not drawn, such as weapon or shield."""
    tint: Colour | None = None
    """Player colour in place of the look's own."""


@dataclass(frozen=True)
class Scene:
    """A clip to be drawn."""

    actors: tuple[Actor, ...]
    camera: Camera
    light: Light = Light()
    background: Background = Background()
    height: int = 256
    width: int = 256

    def __post_init__(self) -> None:
        count = len(self.camera.eye)
        for actor in self.actors:
            if len(actor.pose) != count:
                raise ShapeError(
                    f"{actor.look.name} has {len(actor.pose)} frames, the camera {count}"
                )

    @property
    def frames(self) -> int:
        """T."""
        return len(self.camera.eye)


@dataclass(frozen=True)
class Joints:
    """Joints of one actor on the picture."""

    names: tuple[str, ...]
    pixels: Array
    """(T, N, 2) x right, y down; the top left pixel's centre is (0.5, 0.5)."""
    depth: Array
    """(T, N) metres along the optical axis."""
    visible: NDArray[np.bool_]
    """(T, N) inside the frame and, when truth was asked for, not hidden behind a surface."""

    def __getitem__(self, name: str) -> Array:
        """(T, 2) pixels of one joint."""
        return self.pixels[:, self.names.index(name)]


@dataclass(frozen=True)
class Rendered:
    """A drawn clip with its truth."""

    rgb: NDArray[np.uint8]  # (T, H, W, 3)
    mask: NDArray[np.uint8]  # (T, H, W): 0 background, 1.. the actor's place in the scene
    joints: tuple[Joints, ...]  # one an actor
    flow: Array | None = field(default=None)
    """(T - 1, H, W, 2) pixels from frame t to t + 1, of the surface seen at frame t; 0 on
    the background."""
    depth: Array | None = field(default=None)
    """(T, H, W) metres along the optical axis; 0 on the background."""
