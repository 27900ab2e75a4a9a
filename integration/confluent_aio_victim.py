"""The consumer process of ``confluent_victim`` in an event loop."""

from __future__ import annotations

import sys

from integration.confluent_victim import main
from integration.kafka_victim import Doom

if __name__ == "__main__":
    *_places, _moment, _after, _transactional = sys.argv[1:]
    main(_places, Doom(_moment, int(_after)), _transactional, slow=_moment == "slow", aio=True)
