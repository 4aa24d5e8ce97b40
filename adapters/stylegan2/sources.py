"""The released source texts that files of this family bring along, by their SHA-256.

Of the UTF-8 text as Python reads it (no byte order mark, newlines of one character), computed from
every commit of the three repositories' main branches. A discriminator or augmentation pipe that
brings one of them is written back as it was; what brings any other text is not.
"""

from __future__ import annotations

_ADA, _SG3, _PG = "stylegan2-ada-pytorch", "stylegan3", "projected-gan"
KNOWN_SOURCES = {
    "53b4e1ec457171d4e2c1454d48013765ab626141c35cdd383b020950effe11a5": (
        f"{_ADA}: training/networks.py"
    ),
    "77eb17876bc7ba87cdc9281caf925daf507ce0937b84d0f32134d4d08e13061e": (
        f"{_ADA}: training/augment.py"
    ),
    "b6f14e8fa2a95de4d38218fef31380c6a70de770f585107e209ff83075c307ef": (
        f"{_SG3}: training/networks_stylegan2.py"
    ),
    "06082fb3e8929e477f58fb8bc78e7ecb9a9209eb01444272d1d153c85a6a89f7": (
        f"{_SG3}: training/networks_stylegan3.py"
    ),
    "43c6b98bc68d5d214dd2e2775a10eb007dee034c005766fbc310005147bfb788": (
        f"{_SG3}: training/augment.py"
    ),
    "e7c6bd62c13983b4f66c330ea3f0fb8534bf2762aca6c41f239795044d27ef13": (
        f"{_PG}: pg_modules/networks_stylegan2.py"
    ),
}
