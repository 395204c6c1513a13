"""Searches a Django model by meaning. A vecsync follows the database; this asks it, and holds no index itself."""

from .errors import (
    VectorStoreError,
    VectorStoreOverloaded,
    VectorStoreProtocolError,
    VectorStoreRefused,
    VectorStoreTimeout,
    VectorStoreUnauthorized,
    VectorStoreUnavailable,
)
from .results import Hit, SearchResults, StoreHealth, StoreStats
from .store import QdrantVectorStore, VectorStore, VectorStoreFactory

__version__ = "0.1.0"

__all__ = [
    "Hit",
    "QdrantVectorStore",
    "SearchResults",
    "StoreHealth",
    "StoreStats",
    "VectorStore",
    "VectorStoreError",
    "VectorStoreFactory",
    "VectorStoreOverloaded",
    "VectorStoreProtocolError",
    "VectorStoreRefused",
    "VectorStoreTimeout",
    "VectorStoreUnauthorized",
    "VectorStoreUnavailable",
]
