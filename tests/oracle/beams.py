"""HF transformers' beam search over the models of reference.py, PARA, LoPA and IDPG included: whole passes, no cache, no padding."""

import copy

import torch
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

import reference


class Uncached(PreTrainedModel, GenerationMixin):
    """What HF's generate needs of a model, with logits of reference.py; a row is one token that stands for all before the answer, and the answer so far."""

    _supports_sdpa = True  # as the config, which is that of the model inside, asks
    device = torch.device("cpu")

    def __init__(self, model, sample):
        config = copy.deepcopy(model.config)
        config.is_encoder_decoder = False  # what the encoder reads is part of `next_logits`
        super().__init__(config)
        self.rows = lambda said: reference.next_logits(model, sample, said)[None]

    def forward(self, input_ids, **_):
        return CausalLMOutput(logits=torch.stack([self.rows(ids[1:]) for ids in input_ids.tolist()]))


def search_options(beams, max_new_tokens, end_tokens):
    """The settings that graft's beam search has, whatever generation_config.json says."""
    return dict(
        num_beams=beams,
        max_new_tokens=max_new_tokens,
        eos_token_id=end_tokens,
        pad_token_id=0,
        do_sample=False,
        early_stopping=False,
        length_penalty=1.0,
    )


@torch.no_grad()
def search(model, sample, beams, max_new_tokens, end_tokens):
    """The best answer to a sample, its end token included."""
    options = search_options(beams, max_new_tokens, end_tokens)
    found = Uncached(model, sample).generate(torch.tensor([[0]]), use_cache=False, **options)
    return found[0, 1:].tolist()
