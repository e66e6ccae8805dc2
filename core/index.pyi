from typing import Any

def drop(items: list[Any] | dict[Any, Any]) -> int:
    """Free what a list or dict holds, a part at a time: at once it would hold up other threads."""
