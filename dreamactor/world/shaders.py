"""GLSL 3.30 of the renderer.

All frames of a clip lie in one tall strip of tiles, frame 0 first. One instance is one frame.
Image rows run downwards in the strip, so y is mirrored and front faces turn clockwise.

    bones    row = actor * frames + frame; texels 3j .. 3j+2 are the rows of bone j's 3x4 matrix
    frames   row = frame; texels 0-3 view-projection rows, 4 eye (xyz) and blob count,
             5 ray at the frame's middle, 6 half width, 7 half height, 8.. shadow blobs
             (x, z, radius, strength)
"""

SKIN = """
#version 330
uniform sampler2D bones;
uniform sampler2D frames;
uniform int first;    // frame in the strip's top tile
uniform int count;    // tiles in the strip
uniform int row;      // this actor's row of frame 0 in bones
in vec3 in_position;
in vec3 in_normal;
in vec3 in_smooth;
in vec2 in_uv;
in uvec4 in_bones;
in vec4 in_weights;

void skin(int at, out vec4 a, out vec4 b, out vec4 c) {
    a = vec4(0); b = vec4(0); c = vec4(0);
    for (int i = 0; i < 4; ++i) {
        float w = in_weights[i];
        if (w > 0.0) {
            int x = 3 * int(in_bones[i]);
            a += w * texelFetch(bones, ivec2(x, at), 0);
            b += w * texelFetch(bones, ivec2(x + 1, at), 0);
            c += w * texelFetch(bones, ivec2(x + 2, at), 0);
        }
    }
}

vec4 project(int frame, vec3 world) {
    vec4 p = vec4(world, 1);
    return vec4(dot(texelFetch(frames, ivec2(0, frame), 0), p),
                dot(texelFetch(frames, ivec2(1, frame), 0), p),
                dot(texelFetch(frames, ivec2(2, frame), 0), p),
                dot(texelFetch(frames, ivec2(3, frame), 0), p));
}

void into_tile(vec4 clip) {
    gl_ClipDistance[0] = clip.w + clip.x;
    gl_ClipDistance[1] = clip.w - clip.x;
    gl_ClipDistance[2] = clip.w + clip.y;
    gl_ClipDistance[3] = clip.w - clip.y;
    float n = float(count);
    float y = ((2.0 * float(gl_InstanceID) + 1.0) * clip.w - clip.y) / n - clip.w;
    gl_Position = vec4(clip.x, y, clip.z, clip.w);
}
"""

SHADE_VERTEX = (
    SKIN
    + """
out vec3 normal;
out vec3 world;
out vec2 uv;
flat out vec3 eye;

void main() {
    int frame = first + gl_InstanceID;
    vec4 a, b, c;
    skin(row + frame, a, b, c);
    vec4 p = vec4(in_position, 1);
    world = vec3(dot(a, p), dot(b, p), dot(c, p));
    normal = vec3(dot(a.xyz, in_normal), dot(b.xyz, in_normal), dot(c.xyz, in_normal));
    uv = in_uv;
    eye = texelFetch(frames, ivec2(4, frame), 0).xyz;
    into_tile(project(frame, world));
}
"""
)

SHADE_FRAGMENT = """
#version 330
uniform sampler2D albedo;
uniform vec3 tint;
uniform bool cutout;
uniform bool tinted;
uniform bool toon;
uniform float bands;
uniform vec4 recolour;     // hue turn (turns), saturation, value, amount
uniform bool keep_skin;
uniform vec3 sun;          // towards it
uniform vec3 sun_light;
uniform vec3 sky_light;
uniform vec3 ground_light;
uniform float id;
in vec3 normal;
in vec3 world;
in vec2 uv;
flat in vec3 eye;
out vec4 colour;

vec3 to_hsv(vec3 c) {
    vec4 p = mix(vec4(c.bg, -1.0, 2.0 / 3.0), vec4(c.gb, 0.0, -1.0 / 3.0), step(c.b, c.g));
    vec4 q = mix(vec4(p.xyw, c.r), vec4(c.r, p.yzx), step(p.x, c.r));
    float d = q.x - min(q.w, q.y);
    return vec3(abs(q.z + (q.w - q.y) / (6.0 * d + 1e-6)), d / (q.x + 1e-6), q.x);
}

vec3 to_rgb(vec3 c) {
    vec3 p = abs(fract(c.xxx + vec3(1.0, 2.0 / 3.0, 1.0 / 3.0)) * 6.0 - 3.0);
    return c.z * mix(vec3(1), clamp(p - 1.0, 0.0, 1.0), c.y);
}

void main() {
    vec4 texel = toon ? texture(albedo, uv, 1.5) : texture(albedo, uv);
    if (cutout && texel.a < 0.5) discard;
    vec3 base = texel.rgb;
    if (tinted) base *= mix(tint, vec3(1), texel.a);
    if (recolour.w > 0.0) {
        vec3 hsv = to_hsv(base);
        float skin = keep_skin ? smoothstep(0.09, 0.06, abs(hsv.x - 0.065)) *
            smoothstep(0.12, 0.25, hsv.y) * smoothstep(0.75, 0.6, hsv.y) : 0.0;
        vec3 turned = to_rgb(vec3(fract(hsv.x + recolour.x),
            clamp(hsv.y * recolour.y + 0.12, 0.0, 0.78), clamp(hsv.z * recolour.z, 0.0, 1.0)));
        base = mix(base, turned, recolour.w * (1.0 - skin));
    }
    vec3 n = normalize(gl_FrontFacing ? normal : -normal);
    vec3 to_eye = normalize(eye - world);
    float facing = dot(n, sun);
    if (toon) {
        vec3 hsv = to_hsv(base);
        float level = hsv.z * 4.0;   // soft steps: hard ones turn painted grain into blotches
        hsv.z = (floor(level) + smoothstep(0.15, 0.85, fract(level))) / 4.0 * 0.94 + 0.04;
        hsv.y = min(hsv.y * 1.15, 0.9);
        base = to_rgb(hsv);
        float x = clamp(facing * 0.5 + 0.5, 0.0, 1.0) * bands;
        float edge = max(fwidth(x), 0.02);
        float band = floor(x) + smoothstep(1.0 - edge, 1.0, fract(x));
        facing = clamp(band / (bands - 1.0), 0.0, 1.0) * 1.3 - 0.35;
    }
    // Wrapped diffuse: the terminator stays soft, so no half of a face drowns.
    float diffuse = max((facing + 0.35) / 1.35, 0.0);
    diffuse *= diffuse * 0.4 + 0.6;
    float up = toon ? 0.7 : n.y * 0.5 + 0.5;
    vec3 light = sun_light * diffuse + mix(ground_light, sky_light, up);
    vec3 lit = pow(base, vec3(2.2)) * light;
    if (!toon) {
        float rim = pow(1.0 - max(dot(n, to_eye), 0.0), 4.0) * max(0.3 + 0.7 * n.y, 0.0);
        lit += rim * 0.10 * sky_light;
    }
    lit = lit * (1.0 + lit * 0.12) / (1.0 + lit * 0.35);   // shoulder: whites keep their detail
    colour = vec4(pow(clamp(lit, 0.0, 1.0), vec3(1.0 / 2.2)), id);
}
"""

# An inverted hull: the mesh grown along smooth normals, only its far side drawn, in a dark tone.
HULL_VERTEX = (
    SKIN
    + """
uniform float width;    // metres per metre of distance
uniform float push;     // metres away from the camera
out vec2 uv;

void main() {
    int frame = first + gl_InstanceID;
    vec4 a, b, c;
    skin(row + frame, a, b, c);
    vec4 p = vec4(in_position, 1);
    vec3 world = vec3(dot(a, p), dot(b, p), dot(c, p));
    vec3 n = vec3(dot(a.xyz, in_smooth), dot(b.xyz, in_smooth), dot(c.xyz, in_smooth));
    float away = project(frame, world).w;
    vec4 clip = project(frame, world + normalize(n) * width * away);
    uv = in_uv;
    into_tile(clip);
    vec3 eye = texelFetch(frames, ivec2(4, frame), 0).xyz;
    vec4 behind = project(frame, world + normalize(world - eye) * push);
    gl_Position.z = behind.z / behind.w * clip.w;
}
"""
)

HULL_FRAGMENT = """
#version 330
uniform sampler2D albedo;
uniform bool cutout;
uniform float id;
in vec2 uv;
out vec4 colour;
void main() {
    vec4 texel = texture(albedo, uv, 3.0);
    if (cutout && texture(albedo, uv).a < 0.5) discard;
    colour = vec4(texel.rgb * 0.22, id);
}
"""

# Truth at pixel centres: flow to the next frame (pixels), depth (metres), actor.
TRUTH_VERTEX = (
    SKIN
    + """
uniform int last;       // last frame of the clip
uniform vec2 half_size; // half of (W, H), pixels
out vec2 uv;
out vec4 here;
out vec4 next;

void main() {
    int frame = first + gl_InstanceID;
    int then = min(frame + 1, last);
    vec4 a, b, c;
    vec4 p = vec4(in_position, 1);
    skin(row + then, a, b, c);
    next = project(then, vec3(dot(a, p), dot(b, p), dot(c, p)));
    skin(row + frame, a, b, c);
    here = project(frame, vec3(dot(a, p), dot(b, p), dot(c, p)));
    uv = in_uv;
    into_tile(here);
}
"""
)

TRUTH_FRAGMENT = """
#version 330
uniform sampler2D albedo;
uniform bool cutout;
uniform vec2 half_size;
uniform float id;
in vec2 uv;
in vec4 here;
in vec4 next;
out vec4 truth;
void main() {
    if (cutout && texture(albedo, uv).a < 0.5) discard;
    vec2 step = next.xy / next.w - here.xy / here.w;
    truth = vec4(step * vec2(1, -1) * half_size, here.w, id);
}
"""

# Resolve: average the samples of a pixel over the background, vote for its actor.
SURFACE_VERTEX = (
    SKIN
    + """
out vec2 uv;
out vec3 spot;

void main() {
    int frame = first + gl_InstanceID;
    vec4 a, b, c;
    vec4 p = vec4(in_position, 1);
    skin(row + frame, a, b, c);
    uv = in_uv;
    spot = in_position;
    into_tile(project(frame, vec3(dot(a, p), dot(b, p), dot(c, p))));
}
"""
)

SURFACE_FRAGMENT = """
#version 330
uniform sampler2D albedo;
uniform bool cutout;
in vec2 uv;
in vec3 spot;
out vec4 surface;
void main() {
    if (cutout && texture(albedo, uv).a < 0.5) discard;
    surface = vec4(spot, 1);
}
"""

RESOLVE_VERTEX = """
#version 330
uniform sampler2D frames;
uniform int first;
uniform int count;
flat out vec3 ahead;
flat out vec3 wide;
flat out vec3 high;
flat out vec3 eye;
flat out int place;
flat out int frame;
flat out int blobs;

void main() {
    vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1);
    frame = first + gl_InstanceID;
    vec4 head = texelFetch(frames, ivec2(4, frame), 0);
    eye = head.xyz;
    blobs = int(head.w);
    ahead = texelFetch(frames, ivec2(5, frame), 0).xyz;
    wide = texelFetch(frames, ivec2(6, frame), 0).xyz;
    high = texelFetch(frames, ivec2(7, frame), 0).xyz;
    place = gl_InstanceID;
    float y = (float(gl_InstanceID) + corner.y) / float(count) * 2.0 - 1.0;
    gl_Position = vec4(corner.x * 2.0 - 1.0, y, 0, 1);
}
"""

RESOLVE_FRAGMENT = """
#version 330
uniform sampler2DMS strip;
uniform sampler2D frames;
uniform sampler2D backdrop;
uniform sampler2D terrain;
uniform bool outdoors;
uniform float tile;
uniform vec3 horizon;
uniform vec3 zenith;
uniform ivec2 size;        // of one frame, pixels
flat in vec3 ahead;
flat in vec3 wide;
flat in vec3 high;
flat in int place;
flat in vec3 eye;
flat in int frame;
flat in int blobs;
layout(location = 0) out vec4 colour;
layout(location = 1) out float actor;

vec3 background(ivec2 pixel, vec3 ray, float t, vec2 spot, vec2 dx, vec2 dy) {
    bool ground = ray.y < -1e-4 && t > 0.0;
    vec3 back;
    if (outdoors) {
        float up = clamp(ray.y / length(ray) * 3.0, 0.0, 1.0);
        back = mix(horizon, zenith, up);
        // Own anisotropic filter: taps along the longer axis; drivers differ, llvmpipe crawls.
        bool along = dot(dx, dx) > dot(dy, dy);
        vec2 major = along ? dx : dy, minor = along ? dy : dx;
        vec3 soil = vec3(0);
        for (int i = 0; i < 4; ++i)
            soil += textureGrad(terrain, spot / tile + major * (float(i) - 1.5) / 4.0,
                major / 4.0, minor).rgb / 4.0;
        soil = pow(soil, vec3(2.2));   // brighter, with a shoulder for sand and snow
        soil = pow(soil * 1.5 / (1.0 + soil * 0.9), vec3(1.0 / 2.2));
        float far = ground ? 1.0 - exp(-max(t * length(ray) - 4.0, 0.0) / 26.0) : 1.0;
        back = mix(soil, back, far);
    } else {
        back = texelFetch(backdrop, pixel, 0).rgb;
    }
    if (ground && blobs > 0) {
        float clear = 1.0;
        for (int i = 0; i < blobs; ++i) {
            vec4 blob = texelFetch(frames, ivec2(8 + i, frame), 0);
            vec2 d = (spot - blob.xy) / blob.z;
            clear *= 1.0 - blob.w * exp(-dot(d, d));
        }
        back *= max(clear, 0.35);
    }
    return back;
}

void main() {
    ivec2 pixel = ivec2(gl_FragCoord.xy);
    vec4 s[4];
    for (int i = 0; i < 4; ++i) s[i] = texelFetch(strip, pixel, i);
    int covered = 0;
    vec3 sum = vec3(0);
    float id = 0.0;
    int votes = 0;
    for (int i = 0; i < 4; ++i) {
        if (s[i].a == 0.0) continue;
        sum += s[i].rgb;
        ++covered;
        int same = 0;
        for (int j = 0; j < 4; ++j) same += int(s[j].a == s[i].a);
        if (same > votes) { votes = same; id = s[i].a; }
    }
    // From whole pixels, not interpolated: the same to the bit wherever the tile lies.
    pixel.y -= place * size.y;
    vec2 ndc = (vec2(pixel) + 0.5) / vec2(size) * vec2(2, -2) - vec2(1, -1);
    vec3 ray = ahead + ndc.x * wide + ndc.y * high;
    float t = -eye.y / ray.y;
    vec2 spot = eye.xz + t * ray.xz;
    vec2 dx = dFdx(spot) / tile, dy = dFdy(spot) / tile;   // before the branch, where defined
    vec3 back = covered < 4 ? background(pixel, ray, t, spot, dx, dy) : vec3(0);
    colour = vec4((sum + float(4 - covered) * back) / 4.0, 1);
    actor = covered >= 2 ? id : 0.0;
}
"""
