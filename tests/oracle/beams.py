"""HF transformers' beam search over the models of reference.py, PARA, LoPA and IDPG included: whole passes, no cache, no padding."""

import torch
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

import reference


class Uncached(PreTrainedModel, GenerationMixin):
    """What HF's generate needs of a model, with logits of reference.py; `prompt_length` tokens of each row are its prompt."""

    _supports_sdpa = True  # as the config, which is that of the model inside, asks
    device = torch.device("cpu")

    def __init__(self, model, prompt_length):
        super().__init__(model.config)
        self.rows = lambda ids: reference.logits(model, ids, prompt_length)[-1:]

    def forward(self, input_ids, **_):
        return CausalLMOutput(logits=torch.stack([self.rows(ids) for ids in input_ids.tolist()]))


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
def search(model, prompt, beams, max_new_tokens, end_tokens):
    """The best continuation of a prompt, its end token included."""
    options = search_options(beams, max_new_tokens, end_tokens)
    found = Uncached(model, len(prompt)).generate(
        torch.tensor([prompt]), use_cache=False, **options
    )
    return found[0, len(prompt) :].tolist()
