"""Times an ELECTRA pretraining step on transformers and PyTorch, to compare `electra_jax.benchmark` with; no test.

    python tests/transformers_step.py --config=configs/small.py --config.train.batch_size=16 [--compile]

Same sizes, dropout, masked positions, objective, clipping and AdamW; random tokens without padding, which favours
transformers. Prints a JSON line.
"""

import json
import resource
import statistics
import time

import torch
from torch.nn import functional
from transformers import ElectraConfig, ElectraForMaskedLM, ElectraForPreTraining

from electra_jax import cli
from electra_jax.config import Config, EncoderConfig


def tower(config: Config, encoder: EncoderConfig, kind: type) -> torch.nn.Module:
    model = config.model
    sizes = ElectraConfig(
        vocab_size=config.tokenizer.vocab_size, embedding_size=model.embedding_size, hidden_size=encoder.hidden_size,
        num_hidden_layers=encoder.num_hidden_layers, num_attention_heads=encoder.num_attention_heads,
        intermediate_size=encoder.intermediate_size, max_position_embeddings=model.max_position_embeddings,
        hidden_dropout_prob=model.hidden_dropout_prob, attention_probs_dropout_prob=model.attention_probs_dropout_prob,
    )  # fmt: skip
    return kind(sizes).train()


def make_step(config: Config, is_compiled: bool):
    generator = tower(config, config.model.generator, ElectraForMaskedLM)
    discriminator = tower(config, config.model.discriminator, ElectraForPreTraining)
    discriminator.electra.embeddings = generator.electra.embeddings
    params = list(dict.fromkeys([*generator.parameters(), *discriminator.parameters()]))
    rates = config.optimizer
    optimizer = torch.optim.AdamW(params, lr=rates.learning_rate, weight_decay=rates.weight_decay, fused=True)
    length, batch, _ = config.phases[-1]
    ids = torch.randint(1000, config.tokenizer.vocab_size, (batch, length))
    masked = torch.rand(batch, length).topk(config.objective.max_predictions(length)).indices
    everywhere = torch.ones_like(ids)

    def loss() -> torch.Tensor:
        labels = ids.gather(1, masked)
        hidden = generator.electra(ids.scatter(1, masked, 4), attention_mask=everywhere).last_hidden_state
        hidden = hidden.gather(1, masked[..., None].expand(-1, -1, hidden.shape[-1]))
        logits = generator.generator_lm_head(generator.generator_predictions(hidden)).float()
        with torch.no_grad():
            samples = (logits - torch.log(torch.empty_like(logits).exponential_() + 1e-9)).argmax(-1)  # Gumbel-max
        corrupted = ids.scatter(1, masked, samples)
        scores = discriminator(corrupted, attention_mask=everywhere).logits.float()
        detection = functional.binary_cross_entropy_with_logits(scores, (corrupted != ids).float())
        masked_lm = functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return config.objective.gen_weight * masked_lm + config.objective.disc_weight * detection

    loss = torch.compile(loss) if is_compiled else loss

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.model.dtype == "bfloat16"):
            total = loss()
        total.backward()
        torch.nn.utils.clip_grad_norm_(params, rates.clip_norm)
        optimizer.step()
        return total.item()

    return step, batch * length


def main(argv: list[str]) -> None:
    parser = cli.parser("transformers_step", "Times a step on transformers.")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--compile", action="store_true")
    args, overrides = cli.parse(parser, argv)
    step, tokens = make_step(cli.load_config(args.config, overrides), args.compile)
    seconds = []
    for _ in range(3 + args.steps):
        begin = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - begin)
    median = statistics.median(seconds[3:])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"step_seconds": median, "tokens_per_second": tokens / median, "peak_memory_bytes": peak}))


if __name__ == "__main__":
    cli.run(main)
