"""Widths and sides that a config does not state: databases and encoders give them.

An embedding has one width: data.feat_dim, model.num_classes, the database at data.feat_path, and
encoders.clip agree on it. So do data.num_channels, model.in_channels, the database at data.root and
encoders.vae on the channels of a latent, and model.in_size, that database, and encoders.vae with
data.resolution on its side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from models.backbones import MODEL_SIZES
from utils.base.errors import UserError, note
from utils.config.schema import Config
from utils.config.sections import Model
from utils.data.lmdb_reader import database_shape
from utils.pretrained.encoders import config_embedding_width, config_latent_layout

# The use that a script makes of latents or embeddings. If it makes them, keys, database and
# encoder must agree. If it reads them, keys and database must. Any other disagreement is a note.
Use = Literal["makes", "reads", "none"]


class Source(NamedTuple):
    """A size, and the words that say where it comes from, e.g. `data.feat_dim says`."""

    value: int
    says: str


@dataclass(frozen=True)
class Size:
    """One size with everything that states it."""

    name: str
    use: Use
    stated: dict[str, int]  # keys of the config with their values
    follows: tuple[str, ...]  # keys that the config does not state
    database: Source | None
    encoder: Source | None
    encoder_key: str
    or_else: str = ""  # ends the advice to set the stated keys

    @property
    def value(self) -> int | None:
        """Return the size: the database's, else the first stated one, else the encoder's."""
        if self.database is not None:
            return self.database.value
        return next(iter(self.stated.values()), self.encoder and self.encoder.value)

    @property
    def is_fault(self) -> bool:
        """Return True if the script cannot go on with this size."""
        return self.use != "none" and not self.agrees(with_encoder=self.use == "makes")

    def agrees(self, with_encoder: bool) -> bool:
        """Return True if all that state the size agree; `with_encoder` includes the encoder."""
        return len({source.value for source in self._sources(with_encoder)}) <= 1

    def _sources(self, with_encoder: bool) -> list[Source]:
        sources = [Source(value, f"{key} says") for key, value in self.stated.items()]
        sources += [self.encoder] if self.encoder and with_encoder else []
        return sources + ([self.database] if self.database else [])

    def line(self) -> str:
        """Return the line that names every source, and the remedy."""
        sources = self._sources(with_encoder=True)
        listed = ", ".join(f"{source.says} {source.value}" for source in sources)
        made = {source.value for source in (self.database, self.encoder) if source}
        if len(made) > 1:
            remedy = (
                f"set {self.encoder_key} to the network that made the database, or delete the "
                "database and make it again"
            )
        elif not made:
            remedy = f"set {' and '.join(self.stated)} to one number"
        else:
            (right,) = made
            wrong = [key for key, value in self.stated.items() if value != right]
            them = "the key" if len(wrong) == 1 else "the keys"
            remedy = f"set {' and '.join(wrong)} to {right}, or leave out {them}{self.or_else}"
        return f"{self.name}: {listed}; {remedy}"


def with_derived_sizes(
    config: Config, latents: Use = "reads", embeddings: Use = "reads", databases: bool = True
) -> Config:
    """Return the config with every width and side filled in that it does not state.

    Args:
        latents: what the caller does with latents.
        embeddings: what the caller does with embeddings.
        databases: False if the caller does not use the databases that the config names.

    Raises UserError with one line for each disagreement, all at once. Prints a note for each if
    none of them stops a caller that makes or reads a database.
    """
    if {latents, embeddings} != {"none"}:  # else a trained network stands behind the settings
        require_fitting_resolution(config, may_fetch=latents == "makes")
    sizes = _latent_sizes(config, latents, databases)
    sizes += _embedding_size(config, embeddings, databases)
    lines = [size.line() for size in sizes if not size.agrees(with_encoder=True)]
    if any(size.is_fault for size in sizes):
        raise UserError("\n".join(lines))
    if {latents, embeddings} != {"none"}:  # a script that only samples checks what it loads
        for line in lines:
            note(line)
    changes: dict[str, dict[str, int]] = {"data": {}, "model": {}}
    for size in sizes:
        for section, key in (name.split(".") for name in size.follows):
            if size.value is not None:
                changes[section][key] = size.value
    return config.model_copy(
        update={
            "data": config.data.model_copy(update=changes["data"]),
            "model": config.model.model_copy(update=changes["model"]),
        }
    )


def require_fitting_resolution(config: Config, may_fetch: bool = False) -> None:
    """Raise UserError unless the patches of the network tile the latents of `data.resolution`.

    Nothing is checked while the VAE or the network is unknown. may_fetch: ask the hub for the VAE.
    """
    layout = config_latent_layout(config.encoders, may_fetch)
    patch = MODEL_SIZES.get(config.model.model_type, (0, 0, 0, 0))[2]
    if layout is None or not patch or config.data.resolution % (layout[1] * patch) == 0:
        return
    unit = layout[1] * patch
    lower = config.data.resolution // unit * unit
    raise UserError(
        f"data.resolution: {config.data.resolution} is no multiple of {unit} pixels, "
        f"{layout[1]} for a latent of encoders.vae times {patch} for a patch of "
        f"{config.model.model_type}; set it to {f'{lower} or ' if lower else ''}{lower + unit}"
    )


def token_grid(model: Model) -> int:
    """Return how many tokens the network makes of a latent along one side."""
    patch = MODEL_SIZES.get(model.model_type, (0, 0, 1, 0))[2]  # an unknown type is named later
    return model.in_size // patch


def _stated(config: Config, keys: Sequence[str]) -> tuple[dict[str, int], tuple[str, ...]]:
    """Return the keys that the config states with their values, and the others."""
    stated, follows = {}, []
    for key in keys:
        section_name, name = key.split(".")
        section = getattr(config, section_name)
        if section_name in config.model_fields_set and name in section.model_fields_set:
            stated[key] = getattr(section, name)
        else:
            follows.append(key)
    return stated, tuple(follows)


def _embedding_size(config: Config, use: Use, databases: bool) -> list[Size]:
    """Return the width of an embedding, where it matters: as the condition, or as what is made."""
    data, model = config.data, config.model
    classes, _ = _stated(config, ["model.num_classes"])
    is_unconditional = 0 in classes.values()
    is_condition = data.feat_path is not None and not model.ext_feature_dim and not is_unconditional
    if not is_condition and use != "makes":
        return []
    keys = ["data.feat_dim", "model.num_classes"] if is_condition else ["data.feat_dim"]
    stated, follows = _stated(config, keys)
    path = data.feat_path if is_condition and databases else None
    there = None if path is None else database_shape(path)
    database = encoder = None
    if there is not None and there.kind == "y":
        database = Source(there.shape[0], f"the database {data.feat_path} holds")
    if (width := config_embedding_width(config.encoders)) is not None:
        encoder = Source(width, f"encoders.clip ({config.encoders.clip}) gives")
    name = "width of an embedding"
    return [Size(name, use, stated, follows, database, encoder, "encoders.clip")]


def _latent_sizes(config: Config, use: Use, databases: bool) -> list[Size]:
    """Return the channels and the side of a latent."""
    data, vae = config.data, f"encoders.vae ({config.encoders.vae})"
    channels = _stated(config, ["data.num_channels", "model.in_channels"])
    side = _stated(config, ["model.in_size"])
    there = database_shape(data.root) if databases and data.root is not None else None
    there = there if there is not None and there.kind == "z" else None
    is_open = there is None and bool(channels[1] or side[1])
    layout = config_latent_layout(config.encoders, may_fetch=is_open or use == "makes")
    channels_of_vae = side_of_vae = channels_there = side_there = None
    if layout is not None:
        channels_of_vae = Source(layout[0], f"{vae} gives")
        says = f"data.resolution {data.resolution} and {vae}, {layout[1]} times down, give"
        side_of_vae = Source(data.resolution // layout[1], says)
    if there is not None:
        holds = f"the database {data.root} holds"
        if len(there.shape) == 3:
            channels_there = Source(there.shape[0], holds)
        stated = next(iter(channels[0].values()), layout[0] if layout else config.model.in_channels)
        # The plain published layout records no shape; its latents are square.
        is_plain = len(there.shape) == 1
        side_of_plain = round((there.shape[0] / stated) ** 0.5)
        side_there = Source(side_of_plain if is_plain else there.shape[2], holds)
    fitting = [value * layout[1] for value in side[0].values()] if layout else []
    or_else = f", or set data.resolution to {fitting[0]}" if fitting else ""
    key = "encoders.vae"
    return [
        Size("channels of a latent", use, *channels, channels_there, channels_of_vae, key),
        Size("side of a latent", use, *side, side_there, side_of_vae, key, or_else),
    ]
