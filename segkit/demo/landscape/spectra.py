"""Reflectance spectra, and surfaces mixed from them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Floats = NDArray[np.float32]
BANDS = ("blue", "green", "red", "nir", "swir1", "swir2")
# Typical Sentinel-2 surface reflectances in BANDS. Leaves are dark except in the near infrared, and in the short-wave
# infrared darker the wetter they are; reflectance of soil and dry matter increases with wavelength; that of water
# decreases, to almost 0 beyond the red.
_SPECTRA = {
    "forest": (0.022, 0.042, 0.025, 0.290, 0.135, 0.055),
    "gap": (0.012, 0.024, 0.013, 0.190, 0.085, 0.032),  # shade between crowns
    "regrowth": (0.025, 0.052, 0.030, 0.365, 0.165, 0.068),
    "plantation": (0.023, 0.044, 0.026, 0.305, 0.138, 0.056),  # eucalyptus; close to forest on purpose
    "crop": (0.028, 0.060, 0.032, 0.410, 0.180, 0.078),
    "pasture": (0.038, 0.072, 0.058, 0.300, 0.225, 0.115),
    "dry_pasture": (0.048, 0.084, 0.098, 0.255, 0.310, 0.200),
    "stubble": (0.060, 0.095, 0.122, 0.240, 0.330, 0.240),
    "soil": (0.045, 0.072, 0.124, 0.200, 0.315, 0.270),  # red latosol
    "slash": (0.052, 0.074, 0.090, 0.195, 0.270, 0.185),  # felled trunks and dead leaves
    "burnt": (0.032, 0.040, 0.048, 0.095, 0.160, 0.145),
    "sand": (0.105, 0.150, 0.190, 0.265, 0.330, 0.285),
    "rock": (0.074, 0.090, 0.106, 0.165, 0.215, 0.185),  # granite with lichen
    "river": (0.055, 0.078, 0.058, 0.035, 0.012, 0.008),  # carries some silt
    "lake": (0.030, 0.040, 0.026, 0.018, 0.008, 0.005),
    "reed": (0.032, 0.064, 0.042, 0.270, 0.130, 0.060),
    "roof": (0.130, 0.145, 0.165, 0.215, 0.250, 0.225),
    "tile": (0.085, 0.105, 0.165, 0.230, 0.270, 0.235),  # fired clay
    "asphalt": (0.085, 0.093, 0.102, 0.135, 0.160, 0.150),
    "track": (0.066, 0.104, 0.162, 0.240, 0.345, 0.290),  # laterite
}


def _mix(**shares: float) -> Floats:
    """Return the spectrum of a mixture of grounds, {name: share}."""
    mixed = sum(share * np.array(_SPECTRA[name]) for name, share in shares.items())
    return np.asarray(mixed, np.float32)


@dataclass(frozen=True)
class Surface:
    """The appearance of a patch on one date: a ground, spots of another material, and relief.

    Parameters
    ----------
    ground, spots
        Spectra, float32 (6,).
    share
        Share of the spots, 0 to 1.
    grain
        Standard deviation of brightness between crowns, furrows or roofs.
    """

    ground: Floats
    spots: Floats
    share: float = 0.0
    grain: float = 0.03

    def vary(self, rng: Generator) -> Surface:
        """Return this surface with random variation."""
        shade = np.exp(rng.normal(0, 0.07) + rng.normal(0, 0.02, len(BANDS))).astype(np.float32)
        return replace(self, ground=self.ground * shade, share=self.share * rng.uniform(0.6, 1.4))


FOREST = Surface(_mix(forest=1), _mix(gap=1), share=0.12, grain=0.11)
SECONDARY = Surface(_mix(forest=0.8, regrowth=0.2), _mix(regrowth=1), share=0.3, grain=0.06)
REGROWTH = Surface(_mix(regrowth=0.85, pasture=0.15), _mix(pasture=1), share=0.15, grain=0.05)
PASTURE = Surface(_mix(pasture=1), _mix(forest=0.8, pasture=0.2), share=0.05, grain=0.04)
DRY_PASTURE = Surface(_mix(dry_pasture=1), _mix(forest=0.7, dry_pasture=0.3), share=0.06, grain=0.04)
PLANTATION = Surface(_mix(plantation=1), _mix(plantation=1), grain=0.02)
BARE = Surface(_mix(soil=1), _mix(stubble=1), share=0.2)
BURNT_FIELD = Surface(_mix(burnt=0.7, stubble=0.3), _mix(soil=1), share=0.25)
FELLED = Surface(_mix(slash=0.9, soil=0.1), _mix(burnt=1), share=0.25, grain=0.05)
CROPS = (
    Surface(_mix(crop=1), _mix(crop=1)),
    Surface(_mix(crop=0.6, soil=0.4), _mix(crop=1), share=0.2),
    Surface(_mix(crop=0.5, stubble=0.5), _mix(stubble=1), share=0.15),
    Surface(_mix(stubble=1), _mix(soil=1), share=0.15),
    Surface(_mix(soil=0.85, stubble=0.15), _mix(soil=1), share=0.2),
    BURNT_FIELD,
)
NEW_CLEARINGS = (
    FELLED,
    Surface(_mix(burnt=0.8, slash=0.2), _mix(slash=0.7, forest=0.3), share=0.35, grain=0.06),
    Surface(_mix(soil=0.7, slash=0.3), _mix(burnt=0.8, forest=0.2), share=0.2, grain=0.05),
    Surface(_mix(pasture=0.7, slash=0.3), _mix(forest=0.6, slash=0.4), share=0.2, grain=0.05),
)
FIRE_SCAR = Surface(_mix(burnt=0.75, forest=0.25), _mix(forest=0.7, gap=0.3), share=0.35, grain=0.09)
ROCK = Surface(_mix(rock=1), _mix(pasture=0.5, rock=0.5), share=0.25, grain=0.10)
SAND = Surface(_mix(sand=1), _mix(sand=0.7, river=0.3), share=0.2)
RIVER = Surface(_mix(river=1), _mix(river=1), grain=0.0)
LAKE = Surface(_mix(lake=1), _mix(reed=0.5, lake=0.5), share=0.08, grain=0.0)
REED = Surface(_mix(reed=0.75, lake=0.25), _mix(lake=1), share=0.2, grain=0.05)
WET_REED = Surface(_mix(reed=0.4, lake=0.6), _mix(reed=1), share=0.25, grain=0.05)
FLOODED_FOREST = Surface(_mix(forest=0.62, lake=0.38), _mix(gap=0.5, lake=0.5), share=0.2, grain=0.09)
TRACK = Surface(_mix(track=1), _mix(track=1))
ASPHALT = Surface(_mix(asphalt=1), _mix(track=1), share=0.2)
ROOFS = (
    Surface(_mix(roof=0.6, tile=0.2, asphalt=0.2), _mix(tile=1), share=0.3, grain=0.14),
    Surface(_mix(tile=0.6, asphalt=0.4), _mix(roof=1.2), share=0.3, grain=0.14),
    Surface(_mix(roof=0.4, track=0.6), _mix(forest=0.7, roof=0.3), share=0.2, grain=0.14),
    Surface(_mix(roof=0.3, tile=0.3, pasture=0.4), _mix(roof=1), share=0.3, grain=0.12),
)
LEAFY_STREETS = Surface(_mix(forest=0.5, tile=0.3, asphalt=0.2), _mix(forest=0.85, roof=0.15), share=0.35, grain=0.12)
STILT_HOUSES = Surface(_mix(roof=0.55, lake=0.45), _mix(lake=0.7, tile=0.3), share=0.3, grain=0.10)
