"""The presets, one TOML file each: settings over the defaults of the config dataclasses."""
