"""What is said of a path at which nothing is served: what of other servers is missing here."""

from __future__ import annotations

SERVED = (
    "requests go to /v1/chat/completions, /v1/completions, /v1/responses or /v1/messages, and "
    "/v1/models lists the models."
)
_NOT_STORED = (
    "Nothing is stored here, no answers, files or batches: send each request with all that it "
    "needs, and wait for its answer."
)
_COUNTED = "Tokens are counted at /v1/messages/count_tokens only, in the form of Anthropic's API."
_OLLAMA = (
    "Ollama's API is not served here: choose OpenAI's in the client, with this server's address "
    "and /v1 as its base URL."
)
_TWICE = "The path has /v1 twice: leave it out of the client's base URL."
# What the models do not make, by the path at which others serve it.
_NOT_MADE = {
    "audio": "Audio files",
    "embeddings": "Embeddings",
    "images": "Images",
    "moderations": "Moderations",
    "realtime": "Sessions in real time",
    "rerank": "Rankings",
    "videos": "Videos",
}
_STORES = frozenset(
    {"assistants", "batches", "containers", "conversations", "evals", "files"}
    | {"fine_tuning", "threads", "uploads", "vector_stores"}
)
_ENDPOINTS = frozenset({"completions", "messages", "models", "responses"})
_OLLAMAS = frozenset(
    {"blobs", "chat", "copy", "create", "delete", "embed", "embeddings", "generate"}
    | {"ps", "pull", "push", "show", "tags", "version"}
)


def said_of(path: str) -> str:
    """The sentence for whoever asks at a path that is not there."""
    names = [name for name in path.split("/") if name]
    rooted = names[:1] == ["v1"]
    names = [*(names[1:] if rooted else names), "", "", ""]
    first, second, third = names[:3]
    if first in _NOT_MADE:
        return f"{_NOT_MADE[first]} are not served here, only text: {SERVED}"
    if first == "api" and second in _OLLAMAS:
        return _OLLAMA
    if first == "v1":
        return _TWICE
    if first in _ENDPOINTS and not rooted:
        return f"This is served at /v1/{first}: put /v1 at the end of the client's base URL."
    if (first, second) == ("responses", "input_tokens"):
        return _COUNTED
    below = third if first == "chat" else second if first in _ENDPOINTS else ""
    if first in _STORES or below:
        return _NOT_STORED
    return f"There is nothing at this path: {SERVED}"
