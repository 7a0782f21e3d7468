"""The text of the documents that the commands write for people to edit.

The policy template is a complete, valid policy, so that a first study runs unedited; every choice carries its unit and
the reason to change it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

POLICY_TEMPLATE = """\
# The study policy. Edit it, then run "fedmvp-server enroll", which signs these exact bytes.
# Any change after that, even of a comment, needs a new signature and new packages for every site.
# docs/configuration.md describes every key.

[study]
run_id = {run_id}          # unique for ever: ledgers refuse a second release of the same run and round
title = "A first federated study"
rounds = 20

[model]
backbone = "fedmvp-tiny"        # or an open_clip ViT with a class token, for example "ViT-B-16"
pretrained = "embedded"         # or an open_clip tag, for example "openai"; "" = each site names a checkpoint
backbone_sha256 = ""            # pin the weights by their state hash; "" accepts what the name loads
variant = "narrow"              # "narrow", "full" or "lora": fewer parameters need less noise
injection = "last-block"        # "input" as in the paper, or "last-block": ten times faster
n_prompts = 16
n_heads = 4
bottleneck_width = 8
lora_rank = 8
neutral_start = "anchor"        # round 0 equals zero-shot: "anchor" learns better under noise, "mix" without
consistency_weight = 1.0        # pull towards the frozen feature of a mirrored view
flip = false                    # true where a mirrored image means the same (not for digits or text)
probe_gain = 0.0                # above 0, say 4: train a linear probe of these classes beside the prompts
initial_seed = 0

[task]
kind = "single-label"
template = "a photo of a {{name}}, which has {{attribute}}"

# One table a class, in the order of the classifier. The name is also the folder name at every site.
[[task.classes]]
name = "cat"
attributes = ["whiskers", "pointed ears", "soft fur"]

[[task.classes]]
name = "dog"
attributes = ["a long snout", "floppy ears", "a wagging tail"]

[training]
local_steps = 5                 # noisy steps a round; every one of them is charged
learning_rate = 0.5
momentum = 0.0

[privacy]
# "fedmvp-server plan" shows what this costs, round by round, and the noise that a target epsilon needs.
mode = "record-local"           # full noise at every site; "record-distributed" and "silo-distributed" share it in
                                # the secure sum and need more of the study; "UNSAFE-no-dp": on public data only
unit = "record"                 # or "patient": the manifests of all sites then name one for every image
neighboring_relation = "add-or-remove-one"
sample_rate = 0.1               # chance of each record to be in a step
noise_multiplier = 2.0          # standard deviation of the noise over max_grad_norm
max_grad_norm = 0.5
expected_batch_size = 100.0     # a public constant, the same at every site; never a site's own count
delta = 1e-5                    # well below one over the records of the smallest site
epsilon_max = 8.0               # no site may spend more in this study

[aggregation]
colluders = 1                   # sites that may pool what they know with the server
min_cohort = 3                  # fewest sites in a round; three sites need everyone, four survive one loss
min_honest = 2                  # fewest honest inputs in any sum
max_cohort = 32                 # bounds the ring: no sum can wrap around
ring_bits = 32
value_range = 4.0               # largest size of one coordinate of an update; larger ones saturate
server_optimizer = "sgd"
server_learning_rate = 1.0

[deadlines]
training_seconds = 3600.0
phase_seconds = 60.0
join_seconds = 300.0
"""

SERVER_TEMPLATE = """\
# Where this server finds its files. Relative paths start at this file's folder.
# Every key can be given as FEDMVP_<TABLE>_<KEY>, for example FEDMVP_SERVER_LISTEN.

[server]
listen = {listen}
state_dir = "state"             # snapshots, events, audit log: back this folder up

[identity]
certificate = "server.pem"
private_key = "server.key"
ca = "ca.pem"

[study]
policy = "study/policy.toml"
policy_signature = "study/policy.toml.sig"
roster = "study/roster.json"
roster_signature = "study/roster.json.sig"
root_key = "root.pub"

[evaluation]
images = {images}                     # folder of public images, one folder a class; "" = no accuracy is measured
manifest = ""                   # or a CSV file with the columns image,label
batch_size = 64
"""

CLIENT_TEMPLATE = """\
# Where this site finds its files. Relative paths start at this file's folder.
# Every key can be given as FEDMVP_<TABLE>_<KEY>, for example FEDMVP_DATA_PATH.

[site]
name = {name}

[server]
address = ""                    # filled in by "fedmvp-client join"

[identity]
certificate = "study/site.pem"
private_key = "tls.key"
ca = "study/ca.pem"
signing_key = "identity.key"

[study]
policy = "study/policy.toml"
policy_signature = "study/policy.toml.sig"
roster = "study/roster.json"
roster_signature = "study/roster.json.sig"
root_key = "study/root.pub"

[data]
kind = {kind}            # "image-folder": one folder a class; "manifest": CSV with the columns image,label
path = {data}
require_every_class = true      # false where this site holds only some of the classes
dataset_id = {dataset_id}       # these records' name in the ledger; keep it for as long as you keep the records

[privacy]
ledger = "ledger.sqlite"        # back it up; a restored older copy is noticed by the other parties
epsilon_max = {epsilon_max}               # the most these records may ever spend, over all studies

[compute]
device = "auto"                 # auto, cpu, mps, cuda or cuda:N
precision = "auto"              # of the frozen tower: "float32", "bfloat16", "float16"; auto takes the device's fastest
channels_last = false           # another layout of pixels: try it on a GPU
compile = false                 # compile the frozen tower: a minute at the start, for long runs on a GPU
activation_checkpointing = false  # less memory for injection = "input", more time
deterministic = false           # for experiments: the same bits in every run, but for noise and sampling
threads = 0                     # 0 = torch decides
workers = 0                     # threads that decode images; 0 = one a core, at most 16
cache_dir = "cache"             # features of your images, encrypted with cache.key beside your other keys
cache_max_gb = 20.0             # of features on disk; 0 keeps none and computes them in every run
features_max_gb = 4.0           # of features in memory; what does not fit is read from the cache, or computed
checkpoint = ""                 # local weights of the backbone, where the policy names none
max_physical_batch = "auto"     # images at once through the model: fewer need less memory and change no result
per_sample_engine = "book-keeping"   # how gradients are clipped by record; "hooks" is Opacus' own, slower way
memory_limit_gb = 0.0           # most memory of the device for this process; 0 = what is free

[state]
dir = "state"
"""

EMPTY_ADDRESS = 'address = ""'


def toml_value(value: object) -> str:
    """Write one value as TOML: text, number, boolean, or a list or inline table of them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{toml_value(str(key))} = {toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    raise TypeError(f"{type(value).__name__} has no TOML form here")


def toml_text(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Write tables of keys as a TOML document; for policies that a program makes.

    Args:
        tables: table name to its keys and values.
    """
    return "\n".join(
        f"[{table}]\n" + "".join(f"{key} = {toml_value(value)}\n" for key, value in values.items())
        for table, values in tables.items()
    )


def policy_template(run_id: str) -> str:
    """Return the commented policy that ``fedmvp-server init`` writes."""
    return POLICY_TEMPLATE.format(run_id=toml_value(run_id))
