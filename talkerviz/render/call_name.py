"""What a call is called where there is little room."""


def call_name(path: str, class_name: str) -> str:
    """A call in few characters: `q_proj Linear`, `layers.3 Block`."""
    before, _, last = path.rpartition(".")
    # A number says nothing without what it counts.
    name = f"{before.rpartition('.')[2]}.{last}" if before and last.isdecimal() else last
    # What is no module's call, but a collective, has but one name.
    return name if name == class_name else f"{name} {class_name}"
