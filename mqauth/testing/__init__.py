"""For tests of your own code and plug-ins: a clock, forged tokens, the attack suite, and the contracts."""

from mqauth.testing.batchattacks import BATCH_ATTACKS
from mqauth.testing.batchforge import BatchForge
from mqauth.testing.clock import FakeClock
from mqauth.testing.forge import Forge
from mqauth.testing.identity import BatchIdentityForge, IdentityForge, WITSigner
from mqauth.testing.sealed import unverified, verified
from mqauth.testing.stage import MemoryStage, Stage
from mqauth.testing.token_attacks import ATTACKS, Attack

TokenForge = Forge

__all__ = [
    "ATTACKS",
    "BATCH_ATTACKS",
    "Attack",
    "BatchForge",
    "BatchIdentityForge",
    "FakeClock",
    "Forge",
    "IdentityForge",
    "MemoryStage",
    "Stage",
    "TokenForge",
    "WITSigner",
    "unverified",
    "verified",
]
