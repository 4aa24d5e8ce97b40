"""The released source texts that StyleGAN-XL's files bring along, by their SHA-256.

Of the UTF-8 text as Python reads it, computed from every commit of the repository's main branch.
StyleGAN3's are in :mod:`dsconvert_adapters.stylegan2.sources`.
"""

from __future__ import annotations

_XL = "stylegan-xl: training"
KNOWN_SOURCES = {
    "f06d01fcea34325a71abb26ea37f2a3271ccddff3a0df6a7be26b60ddde36ad6": (
        f"{_XL}/networks_stylegan3_resetting.py"
    ),
    "9929b15f6a82ecdb685f40924244c506dfb14a8071b34cc2de4d531809c9bdc5": (
        f"{_XL}/networks_stylegan3_resetting.py"
    ),
    "7e132418e037656b710c50b70059603e9620a96bf37201cf0421345d768badae": (
        f"{_XL}/networks_stylegan3.py"
    ),
}
