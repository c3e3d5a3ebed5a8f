"""Published peers in Keras 3, with the backbones and schedules of all methods."""

from .adi import Adi
from .base import Detection, Peer
from .passport import Passport
from .uchida import Uchida

PEERS: tuple[type[Peer], ...] = (Uchida, Adi, Passport)

__all__ = ["PEERS", "Adi", "Detection", "Passport", "Peer", "Uchida"]
