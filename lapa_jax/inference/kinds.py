"""The one table of kinds of models: what a kind is called, and who loads, labels, evaluates, serves, exports it.

A model says its kind (`models.base.Model.kind`); everything else is looked up here. Classes are named by
"module:Class" and imported when they are asked for, so that this table may name rooms above its own floor.
"""

import dataclasses
import importlib


@dataclasses.dataclass(frozen=True)
class Kind:
    """One kind of model.

    Attributes:
      name: as models declare it. noun: in messages.
      trained: the inference object that `lapa_jax.load` gives.
      evaluation: measures it on held-out samples (`launch/eval.py`). options: what it takes besides what all do.
      codes: gives the codes of steps (`launch/label.py`); None: it has none.
      controller: acts in environments (`launch/eval.py --env`); None: it does not act in physical units.
      not_served: why `launch/serve.py` refuses it, and what to do; None: it is served.
      explorer: answers the page of `launch/explore.py`; None: it has no page. explorer_options: what it takes besides
        what all do.
      training_image: what shows it at evaluations of its training, see `train.images`.
      program: whether its forward pass is exported as a StableHLO program and its weights as int8. What int8 costs is
        then measured in `int8_error`: "actions" or "codes".
    """

    name: str
    noun: str
    trained: str
    evaluation: str
    training_image: str
    options: tuple[str, ...] = ("dataset",)
    codes: str | None = None
    controller: str | None = None
    not_served: str | None = "does not act on images and instructions; serve a run of configs/vla_action.py"
    explorer: str | None = None
    explorer_options: tuple[str, ...] = ("dataset",)
    program: bool = False
    int8_error: str | None = None


KINDS = {kind.name: kind for kind in (
    Kind("frame_pair_tokenizer", "tokenizer of frame pairs",
         trained="lapa_jax.inference.latent_action_tokenizer:LatentActionTokenizer",
         evaluation="lapa_jax.evaluate.latent_actions.evaluation:Evaluation", options=("reference_steps",),
         training_image="lapa_jax.evaluate.training_images:FramePairs",
         codes="lapa_jax.label.codes:PairCodes",
         explorer="lapa_jax.explore.latent_actions:LatentActions", explorer_options=("pairs",)),
    Kind("image_encoder", "encoder of images",
         trained="lapa_jax.inference.image_encoder:ImageEncoder",
         evaluation="lapa_jax.evaluate.image_encoder:Evaluation", options=(),
         training_image="lapa_jax.evaluate.training_images:MaskedImages",
         not_served="gives features and no actions; it is the config.init_from.tower of configs/laq.py:own_features"),
    Kind("action_tokenizer", "tokenizer of actions",
         trained="lapa_jax.inference.tokenizers:ActionTokenizer",
         evaluation="lapa_jax.evaluate.action_tokenizer:Evaluation",
         training_image="lapa_jax.evaluate.training_images:ActionTokenizers",
         codes="lapa_jax.label.codes:ActionCodes"),
    Kind("feature_tokenizer", "tokenizer of features",
         trained="lapa_jax.inference.tokenizers:FeatureTokenizer",
         evaluation="lapa_jax.evaluate.feature_tokenizer:Evaluation", options=("dataset", "projection"),
         training_image="lapa_jax.evaluate.training_images:feature_tokenizers",
         codes="lapa_jax.label.codes:FeatureCodes"),
    Kind("latent_policy", "stage-2 policy",
         trained="lapa_jax.inference.policies:LatentPolicy",
         evaluation="lapa_jax.evaluate.latent_policy:Evaluation", options=("labels", "tokenizer"),
         explorer="lapa_jax.explore.latent_policy:LatentPolicy", explorer_options=("tokenizer", "dataset"),
         training_image="lapa_jax.evaluate.training_images:LatentPolicies",
         not_served="gives codes and no actions; train it on actions (configs/vla_action.py; LAPA-7B: lapa.py:actions, "
                    "UniVLA: univla_policy.py:actions) and serve that run",
         program=True, int8_error="codes"),
    Kind("delta_policy", "stage-2 policy of continuous latents",
         trained="lapa_jax.inference.policies:DeltaPolicy",
         evaluation="lapa_jax.evaluate.delta_policy:Evaluation", options=("labels",),
         training_image="lapa_jax.evaluate.training_images:ActionPolicies",
         not_served="gives latents and no actions; train it on actions (configs/vla_action.py) and serve that run"),
    Kind("action_policy", "stage-3 policy",
         trained="lapa_jax.inference.policies:Policy",
         evaluation="lapa_jax.evaluate.policy:Evaluation",
         training_image="lapa_jax.evaluate.training_images:ActionPolicies",
         controller="lapa_jax.inference.controllers:of_chunks",
         explorer="lapa_jax.explore.policy:Policy",
         not_served=None, program=True, int8_error="actions"),
    Kind("token_policy", "policy of action tokens",
         trained="lapa_jax.inference.policies:TokenPolicy",
         evaluation="lapa_jax.evaluate.policy:Evaluation",
         training_image="lapa_jax.evaluate.training_images:ActionPolicies",
         controller="lapa_jax.inference.controllers:of_chunks",
         explorer="lapa_jax.explore.policy:Policy",
         not_served=None, program=True, int8_error="actions"),
    Kind("coded_policy", "policy of latent actions and actions",
         trained="lapa_jax.inference.policies:CodedPolicy",
         evaluation="lapa_jax.evaluate.policy:Evaluation",
         training_image="lapa_jax.evaluate.training_images:ActionPolicies",
         controller="lapa_jax.inference.controllers:of_chunks",
         explorer="lapa_jax.explore.policy:Policy",
         not_served=None, program=True, int8_error="actions"),
    Kind("in_context_policy", "in-context policy",
         trained="lapa_jax.inference.in_context:InContextPolicy",
         evaluation="lapa_jax.evaluate.in_context:Evaluation",
         training_image="lapa_jax.evaluate.training_images:InContextPolicies",
         controller="lapa_jax.inference.controllers:in_context"),
)}  # fmt: skip


def kind_of(model) -> Kind | None:
    """The row of a model, a Flax module or the program that stands in for one; None for parts and models without."""
    return KINDS.get(model.kind)


def resolve(path: str):
    """The class or function that "module:name" names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
