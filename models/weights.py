"""Read tensors by name from a file of weights, without running any code in the file.

There are three formats: safetensors; files of `torch.save` (read with `weights_only`); and
TorchScript archives, the format in which OpenAI published its CLIP. A TorchScript archive is a zip
of compiled code, of one pickle that describes the modules, and of the tensors' bytes.
`torch.jit.load` would compile the code; this module never reads it. The unpickler here allows four
things: modules (of any class, read as named values), tensors over the archive's own bytes, ordered
dicts, and lists of plain values. It refuses any other name, so that nothing can be called.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

STORAGE_TYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "BoolStorage": torch.bool,
}


def looks_like_path(source: str) -> bool:
    """Return True if a name in a config means a file or folder, not something on a hub."""
    return bool(Path(source).suffix) or source.startswith(("/", ".", "~", "assets/"))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read tensors by name from a .safetensors file, a torch file or a TorchScript archive.

    A torch file may hold the tensors under `state_dict`, beside other plain values.
    Raises ValueError if the file holds anything else, is damaged, or has no tensor.
    """
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        elif is_torchscript(path):
            tensors = _read_torchscript(path)
        else:
            # A zip archive can be mapped, so that only the tensors in use are read.
            mapped = zipfile.is_zipfile(path)
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
            state = state.get("state_dict", state)
            tensors = {name: value for name, value in state.items() if torch.is_tensor(value)}
    except Exception as fault:  # for a damaged or hostile file a library may raise anything
        raise ValueError(f"{path} is not a file of weights") from fault
    if not tensors:
        raise ValueError(f"{path} is not a file of weights: it holds no tensor")
    return tensors


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of a file's tensors by name, without reading their numbers where possible.

    Raises ValueError as `read_tensors` does.
    """
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if is_torchscript(path):
            tensors = _read_torchscript(path, _ShapeUnpickler)
            return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    except Exception as fault:  # for a damaged or hostile file a library may raise anything
        raise ValueError(f"{path} is not a file of weights") from fault
    return {name: tuple(tensor.shape) for name, tensor in read_tensors(path).items()}


def is_torchscript(path: Path) -> bool:
    """Return True if a file is an archive written by `torch.jit.save`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


class _Module:
    """Stand-in for every class of an archive: it holds values and has no behaviour."""

    __slots__ = ("values",)

    def __setstate__(self, state: object) -> None:
        """Keep the values that the unpickler read."""
        self.values = state if isinstance(state, dict) else {}


def _as_list(values: list[object]) -> list[object]:
    """Stand-in for TorchScript's functions that build typed lists."""
    return values


class _ArchiveUnpickler(pickle.Unpickler):
    """Unpickler of the `data.pkl` of a TorchScript archive; see the rules in the module's text."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        """`root`: the folder inside the archive that holds everything."""
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self.archive, self.root = archive, root
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> object:
        """Return the stand-in for a name; raises UnpicklingError if the name is not allowed."""
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name in STORAGE_TYPES:
            return STORAGE_TYPES[name]
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return _as_list
        raise pickle.UnpicklingError(f"refused: {module}.{name}")

    def persistent_load(self, pid: tuple[str, torch.dtype, str, str, int]) -> Tensor:
        """Read a storage as a flat tensor.

        pid: ('storage', type, record, device, number of elements).
        Raises UnpicklingError if the archive holds fewer bytes than announced.
        """
        _, dtype, key, _, count = pid
        if key not in self.storages:
            record = f"{self.root}/data/{key}"
            size = count * dtype.itemsize
            if self.archive.getinfo(record).file_size < size:
                raise pickle.UnpicklingError(f"{record} is shorter than the {size} bytes announced")
            data = bytearray(self.archive.read(record))
            # frombuffer refuses an empty buffer.
            empty = torch.empty(0, dtype=dtype)
            self.storages[key] = torch.frombuffer(data, dtype=dtype, count=count) if size else empty
        return self.storages[key]

    @staticmethod
    def _tensor(
        storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object
    ) -> Tensor:
        """Return a view of a storage; as_strided checks that it stays within the storage."""
        return torch.as_strided(storage, size, stride, offset)


class _ShapeUnpickler(_ArchiveUnpickler):
    """Unpickler whose tensors have shapes and no numbers (device meta)."""

    def persistent_load(self, pid: tuple[str, torch.dtype, str, str, int]) -> Tensor:
        """Return a flat tensor without numbers; `pid` is that of the base class."""
        return torch.empty(pid[4], dtype=pid[1], device="meta")


def _read_torchscript(
    path: Path, unpickler: type[_ArchiveUnpickler] = _ArchiveUnpickler
) -> dict[str, Tensor]:
    """Read all tensors of an archive's modules, parameters or not, under their dotted names."""
    with zipfile.ZipFile(path) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        root = pickles[0].removesuffix("/data.pkl")
        return dict(_named_tensors(unpickler(archive, root).load(), ()))


def _named_tensors(
    module: object, above: tuple[_Module, ...], prefix: str = ""
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor below a module; `above` are its parents, so that a loop ends."""
    if not isinstance(module, _Module) or any(module is m for m in above):
        return
    for name, value in module.values.items():
        if torch.is_tensor(value):
            yield f"{prefix}{name}", value
        else:
            yield from _named_tensors(value, (*above, module), f"{prefix}{name}.")
