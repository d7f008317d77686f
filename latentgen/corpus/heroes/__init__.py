"""The procedural objects: drawn in daylight colours, then lit as one by the scene."""
