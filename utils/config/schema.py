"""The whole configuration: all sections, and the agreement between them."""

from typing import Any

import yaml
from pydantic import ValidationInfo, field_validator

from utils.config.sections import Data, Encoders, Eval, Log, Model, Sampling, Section, Train


class Config(Section):
    """All sections; validation checks that they agree."""

    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    eval: Eval = Eval()
    log: Log = Log()
    encoders: Encoders = Encoders()
    sampling: Sampling = Sampling()

    @field_validator("model")
    @classmethod
    def _fits_data(cls, model: Model, info: ValidationInfo) -> Model:
        data: Data | None = info.data.get("data")
        if data is None:  # `data` has a fault of its own
            return model
        if data.num_channels != model.in_channels:
            raise ValueError(
                f"in_channels is {model.in_channels} but data.num_channels is {data.num_channels}"
            )
        is_condition = data.feat_path is not None and not model.ext_feature_dim
        if is_condition and model.num_classes not in (0, data.feat_dim):
            raise ValueError(
                f"num_classes is {model.num_classes} but data.feat_dim is {data.feat_dim}; "
                "both are the dimension of the embeddings in data.feat_path"
            )
        return model

    @property
    def learns_perturbation(self) -> bool:
        """True if the network perturbs its condition by weights that are trained with it."""
        train = self.train
        by_type = train.perturbation > 0 and train.perturbation_type == "learnable"
        return self.model.perturbation or by_type

    @property
    def samples_classes(self) -> bool:
        """True if images are drawn from random class labels, as there are no embeddings."""
        no_embeddings = self.data.feat_path is None and self.eval.feat_path is None
        return self.model.num_classes > 0 and no_embeddings

    def to_dict(self) -> dict[str, Any]:
        """Return plain builtins only (paths as strings), which `config_from_dict` reads back."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """Return every key with its resolved value; reading it back gives an equal config."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)
