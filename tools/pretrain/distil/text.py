"""Train the text tower of ``fedmvp-small`` to read names and sentences into the space of the vision tower.

    python -m tools.pretrain.distil.text --corpus CORPUS --out text.pt --seconds 900

Names and phrases go to MiniLM's centred feature of them. A sentence with a name in it, whatever the template, goes to
the name's; one with a name and a phrase, to a mean of both in which the name counts more. So a template neither moves
nor shrinks what is told apart, and words that no image was called are read as MiniLM reads them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from fedmvp.model.clip_library import open_clip
from tools.pretrain.corpus import read_concepts
from tools.pretrain.distil.sources import IMAGENET_CLASSES
from tools.pretrain.distil.state import Training
from tools.pretrain.distil.tower import CONFIG
from tools.pretrain.muon import Muon

NAME_TEMPLATES = (
    "{name}",
    "a {name}",
    "a photo of a {name}",
    "a picture of a {name}",
    "a drawing of a {name}",
    "a painting of a {name}",
    "a cartoon of a {name}",
    "a sketch of a {name}",
    "an icon of a {name}",
    "an image of the {name}",
    "a blurry photo of a {name}",
    "a photo of the small {name}",
    "a photo of a {name}, a type of thing",
)
PHRASE_TEMPLATES = (
    "a photo of a {name}, which has {phrase}",
    "a drawing of a {name}, which has {phrase}",
    "a picture of a {name} with {phrase}",
    "{name}, {phrase}",
    "a {name} that has {phrase}",
)
SHARE_OF_NAME = 0.8


class Words:
    """Texts and their targets, centred: names first, then phrases."""

    def __init__(self, corpus: Path) -> None:
        bank = torch.load(corpus / "bank.pt", weights_only=True)
        words = torch.load(corpus / "words.pt", weights_only=True)
        centre = bank["features"][:IMAGENET_CLASSES].float().mean(0)
        self.names: list[str] = [*bank["names"], *words["names"]]
        features = torch.cat([bank["features"], words["name_features"]]).float()
        self.name_features = F.normalize(features - centre, dim=-1)
        self.phrases: list[str] = words["phrases"]
        phrases = words["phrase_features"].float()
        self.phrase_features = F.normalize(phrases - phrases.mean(0), dim=-1)
        # ImageNet's names and those of the drawings are what images were told apart by: they are read more often.
        self.often = torch.arange(len(bank["names"]))
        own = [a for group in read_concepts().values() for w in group.values() for a in w["attributes"]]
        self.own_phrases = torch.tensor([self.phrases.index(a) for a in own])

    def draw(self, count: int) -> tuple[list[str], Tensor]:
        """Sentences and targets ``(count, 384)``."""
        often = self.often[torch.randint(len(self.often), (count,))]
        name = torch.where(torch.rand(count) < 0.4, often, torch.randint(len(self.names), (count,)))
        own = self.own_phrases[torch.randint(len(self.own_phrases), (count,))]
        phrase = torch.where(torch.rand(count) < 0.2, own, torch.randint(len(self.phrases), (count,)))
        kind = torch.rand(count)
        sentences, target = [], self.name_features[name].clone()
        for i in range(count):
            what, says = self.names[name[i]], self.phrases[phrase[i]]
            if kind[i] < 0.15:
                sentences.append(says)
                target[i] = self.phrase_features[phrase[i]]
            elif kind[i] < 0.5:
                template = PHRASE_TEMPLATES[int(torch.randint(len(PHRASE_TEMPLATES), ()))]
                sentences.append(template.format(name=what, phrase=says))
                target[i] = SHARE_OF_NAME * target[i] + (1 - SHARE_OF_NAME) * self.phrase_features[phrase[i]]
            else:
                sentences.append(NAME_TEMPLATES[int(torch.randint(len(NAME_TEMPLATES), ()))].format(name=what))
        return sentences, F.normalize(target, dim=-1)


def used_tokens(words: Words) -> Tensor:
    """CLIP's numbers of every token that a sentence can have, ascending; 0 pads."""
    tokenizer = open_clip.SimpleTokenizer()
    templates = [t.format(name="", phrase="") for t in (*NAME_TEMPLATES, *PHRASE_TEMPLATES)]
    used = {0, tokenizer.sot_token_id, tokenizer.eot_token_id}
    for sentence in {*words.names, *words.phrases, *templates}:
        used.update(tokenizer.encode(sentence))
    return torch.tensor(sorted(used))


def build(vocabulary: int) -> torch.nn.Module:
    """The text half of a CLIP over a dense vocabulary."""
    config = {**CONFIG, "vision_cfg": {"image_size": 8, "layers": 1, "width": 32, "head_width": 32, "patch_size": 8}}
    config["text_cfg"] = {**CONFIG["text_cfg"], "vocab_size": vocabulary}
    model: torch.nn.Module = open_clip.CLIP(**config)
    del model.visual
    return model


def encode(model: torch.nn.Module, tokens: Tensor) -> Tensor:
    """As open_clip encodes text, on as many positions as the longest text has."""
    length = int((tokens.argmax(1)).max()) + 1
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    return F.normalize(x[torch.arange(len(x)), tokens.argmax(1)] @ model.text_projection, dim=-1)


def train(arguments: argparse.Namespace) -> None:
    """Train for a given time and save now and then; goes on where a file is."""
    torch.manual_seed(arguments.seed)
    words, tokenizer = Words(arguments.corpus), open_clip.SimpleTokenizer(context_length=32)
    used = used_tokens(words)
    model = build(len(used))
    inside = [p for name, p in model.named_parameters() if "resblocks" in name and p.ndim == 2]
    rest = [p for name, p in model.named_parameters() if not ("resblocks" in name and p.ndim == 2)]
    optimizers = [
        Muon(inside, lr=arguments.learning_rate),
        torch.optim.AdamW(rest, lr=arguments.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    training = Training({"model": model}, optimizers, {"used": used})
    training.resume(arguments.out)
    torch.manual_seed(arguments.seed + training.step)
    last = last_saved = time.monotonic()
    while training.spent < arguments.seconds:
        left = 1 - training.spent / arguments.seconds
        sentences, targets = words.draw(arguments.batch)
        likeness = encode(model, torch.searchsorted(used, tokenizer(sentences))) @ targets.T
        contrast = F.cross_entropy(20 * likeness, (20 * targets @ targets.T).softmax(1))
        rate = arguments.learning_rate * min(1.0, (training.step + 1) / 50) * min(1.0, 1.25 * left) + 1e-6
        training.descend(4 * (1 - likeness.diagonal()).mean() + contrast, rate)
        now = time.monotonic()
        training.spent, last = training.spent + now - last, now
        if training.step % 50 == 0:
            cosine = round(likeness.diagonal().mean().item(), 3)
            print(json.dumps({"step": training.step, "seconds": round(training.spent), "cosine": cosine}), flush=True)
        if now - last_saved > arguments.save_every or training.spent >= arguments.seconds:
            training.save(arguments.out)
            last_saved = now


def main() -> None:
    """Train the text tower."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True, help="goes on from here if it exists")
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--save-every", type=float, default=120, help="seconds")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    train(arguments)


if __name__ == "__main__":
    main()
