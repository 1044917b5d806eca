"""
Trains the demo's small language model: python3 train.py CORPUS --out FOLDER [--minutes 5].

CORPUS is a folder of .txt books. FOLDER/story becomes an ordinary Hugging Face checkpoint (BF16) of DeepSeek-V3's architecture with
the real latent geometry; FOLDER/training.json and training.svg tell how it went. Needs torch, transformers and tokenizers.
"""
import argparse
import json
import math
import re
import sys
import time
from pathlib import Path

missing = []
try:
    import torch
    import torch.nn.functional as F
except ImportError:
    missing.append('torch')
try:
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV3Config, DeepseekV3ForCausalLM, PreTrainedTokenizerFast
except ImportError as error:
    missing.append(f'transformers with DeepSeek-V3, 4.51 or later ({error})')
try:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
except ImportError:
    missing.append('tokenizers')
if missing:
    sys.exit(f'train.py cannot run here, missing: {", ".join(missing)}')

BOS, EOS = '<|begin_of_text|>', '<|end_of_text|>'


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Trains the demo\'s small model.')
    parser.add_argument('corpus', type=Path)
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--minutes', type=float, default=5, help='training ends, and is saved, after this long at most')
    parser.add_argument('--steps', type=int, help='instead of --epochs')
    parser.add_argument('--epochs', type=float, default=20)
    parser.add_argument('--batch', type=int, default=32, help='sequences a step')
    parser.add_argument('--sequence', type=int, default=512)
    parser.add_argument('--vocab', type=int, default=4096)
    parser.add_argument('--lr', type=float, default=2e-3)
    parser.add_argument('--weight-decay', type=float, default=0.1)
    parser.add_argument('--dropout', type=float, default=0.15)
    parser.add_argument('--balance', type=float, default=1e-3, help='step of the bias that evens out the experts\' load')
    parser.add_argument('--evaluations', type=int, default=40, help='of the validation split, over the whole training')
    parser.add_argument('--validation-tokens', type=int, help='measure on no more than so many')
    parser.add_argument('--experts', help='transformers\' experts implementation, such as eager or grouped_mm; its own choice if absent')
    parser.add_argument('--compile', action='store_true', help='torch.compile: worth its minute only in long trainings')
    parser.add_argument('--seed', type=int, default=1)
    return parser.parse_args()


def books(corpus: Path) -> list[str]:
    """Texts with paragraphs on a line each: line breaks inside them are the printer's, and would be learnt."""
    texts = []
    for file in sorted(corpus.glob('*.txt')):
        text = file.read_text(encoding='utf-8', errors='replace').replace('\r\n', '\n')
        text = re.sub(r'\A\[[^\]]*\]\s*', '', text)  # the header that names the book
        text = re.sub(r'` ', "'", text)
        paragraphs = (' '.join(paragraph.split()) for paragraph in re.split(r'\n\s*\n', text))
        texts.append('\n'.join(paragraph for paragraph in paragraphs if paragraph))
    if not texts:
        sys.exit(f'no .txt files in {corpus}')
    return texts


def split(text: str) -> tuple[str, str]:
    """The last twentieth of every book is for validation."""
    at = text.rfind(' ', 0, int(len(text) * 0.95))
    return text[:at], text[at:]


def train_tokenizer(texts: list[str], size: int, sequence: int) -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[BOS, EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )
    bpe.train_from_iterator((part for text in texts for part in text.split('\n')), trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f'{BOS} $A', pair=f'{BOS} $A {BOS} $B', special_tokens=[(BOS, bpe.token_to_id(BOS))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=BOS, eos_token=EOS, clean_up_tokenization_spaces=False, model_max_length=sequence,
    )


def stream(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    ids: list[int] = []
    for text in texts:
        ids += tokenizer(text, add_special_tokens=False, verbose=False)['input_ids']
        ids.append(tokenizer.eos_token_id)
    return torch.tensor(ids)


def config_of(tokenizer: PreTrainedTokenizerFast, sequence: int) -> DeepseekV3Config:
    """A latent of 512 and a rotary part of 64, as in the large models, since kernels are made for those; the rest is small."""
    return DeepseekV3Config(
        vocab_size=len(tokenizer), hidden_size=256, num_hidden_layers=6, first_k_dense_replace=1,
        num_attention_heads=8, num_key_value_heads=8, q_lora_rank=128, kv_lora_rank=512, qk_rope_head_dim=64, qk_nope_head_dim=32, v_head_dim=32,
        intermediate_size=768, moe_intermediate_size=128, n_routed_experts=8, n_shared_experts=1, num_experts_per_tok=2,
        n_group=1, topk_group=1, norm_topk_prob=True, routed_scaling_factor=1.5,
        max_position_embeddings=sequence, rms_norm_eps=1e-6, initializer_range=0.02, tie_word_embeddings=False,
        num_nextn_predict_layers=0, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    )


class Balance:
    """DeepSeek's balancing without a loss: the bias that an expert is chosen by rises while it gets less than its share."""

    def __init__(self, model: torch.nn.Module, step: float) -> None:
        self.step = step
        self.gates = [module for module in model.modules() if hasattr(module, 'e_score_correction_bias')]
        self.counts = [torch.zeros_like(gate.e_score_correction_bias) for gate in self.gates]
        for gate, count in zip(self.gates, self.counts):
            gate.register_forward_hook(lambda module, _inputs, output, count=count: self.watch(module, output, count))

    @staticmethod
    @torch.no_grad()
    def watch(module: torch.nn.Module, output: tuple, count: torch.Tensor) -> None:
        if not module.training:
            return
        chosen = next(part for part in output if not part.is_floating_point()).reshape(-1)  # versions differ in the order
        count.scatter_add_(0, chosen, torch.ones_like(chosen, dtype=count.dtype))

    @torch.no_grad()
    def update(self) -> None:
        for gate, count in zip(self.gates, self.counts):
            gate.e_score_correction_bias += self.step * torch.sign(count.mean() - count)

    def shares(self) -> list[list[float]]:
        """Of every layer the experts' shares of the tokens since the last call."""
        shares = [[round(float(x), 3) for x in count / count.sum().clamp(min=1)] for count in self.counts]
        for count in self.counts:
            count.zero_()
        return shares


def add_dropout(model: torch.nn.Module, p: float) -> None:
    """On what layers add to the residual, and on embeddings: transformers' DeepSeek drops attention weights at most."""
    def drop(module, _inputs, output):
        if not module.training:
            return None
        if isinstance(output, tuple):
            return (F.dropout(output[0], p), *output[1:])
        return F.dropout(output, p)

    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(drop)
        layer.mlp.register_forward_hook(drop)
    model.model.embed_tokens.register_forward_hook(drop)


class Optimizer:
    """AdamW on float32 copies of BF16 weights: what is trained is what is saved, and small steps do not vanish in rounding."""

    def __init__(self, model: torch.nn.Module, args: argparse.Namespace, device: torch.device) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.weights = [p for _, p in named]
        self.masters = [p.detach().float().clone() for p in self.weights]
        # Neither norms nor embeddings decay.
        decays = [p.dim() > 1 and 'embed' not in name for name, p in named]
        groups = [
            {'params': [m for m, decay in zip(self.masters, decays) if decay], 'weight_decay': args.weight_decay},
            {'params': [m for m, decay in zip(self.masters, decays) if not decay], 'weight_decay': 0.0},
        ]
        self.adam = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), eps=1e-8, fused=device.type == 'cuda')

    def step(self, lr: float) -> None:
        for weight, master in zip(self.weights, self.masters):
            # An expert that no token reached has no gradient.
            master.grad = torch.zeros_like(master) if weight.grad is None else weight.grad.float()
            weight.grad = None
        torch.nn.utils.clip_grad_norm_(self.masters, 1.0)
        for group in self.adam.param_groups:
            group['lr'] = lr
        self.adam.step()
        with torch.no_grad():
            for weight, master in zip(self.weights, self.masters):
                weight.copy_(master)


def batches(ids: torch.Tensor, args: argparse.Namespace, bos: int, device: torch.device):
    """Packed sequences without end: each epoch cuts the stream anew, from another offset, and shuffles the pieces."""
    generator = torch.Generator().manual_seed(args.seed)
    span = args.sequence
    while True:
        offset = int(torch.randint(span, (1,), generator=generator))
        starts = torch.arange(offset, len(ids) - span, span)
        starts = starts[torch.randperm(len(starts), generator=generator)]
        for at in range(0, len(starts) - args.batch + 1, args.batch):
            rows = ids[starts[at:at + args.batch, None] + torch.arange(span)]
            yield begin(rows, bos).to(device, non_blocking=True)


def begin(rows: torch.Tensor, bos: int) -> torch.Tensor:
    """Every sequence starts as a prompt does."""
    rows = rows.clone()
    rows[:, 0] = bos
    return rows


def loss_of(model: torch.nn.Module, rows: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=rows, use_cache=False).logits
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), rows[:, 1:].flatten())


@torch.no_grad()
def validate(model: torch.nn.Module, ids: torch.Tensor, args: argparse.Namespace, bos: int, device: torch.device) -> float:
    model.eval()
    ids = ids[:args.validation_tokens]
    rows = begin(ids[:len(ids) // args.sequence * args.sequence].view(-1, args.sequence), bos).to(device)
    total = torch.zeros((), device=device)
    for part in rows.split(args.batch):
        total += loss_of(model, part) * len(part)
    model.train()
    return float(total) / len(rows)


def draw(history: list[dict], file: Path) -> None:
    """The two loss curves over tokens seen."""
    width, height, left, bottom, top = 640, 360, 52, 40, 16
    points = [(h['tokens'], h['train'], h['validation']) for h in history]
    last = max(t for t, _, _ in points) or 1
    values = [v for _, a, b in points for v in (a, b) if v is not None]
    low, high = math.floor(min(values) * 2) / 2, math.ceil(max(values) * 2) / 2
    high = max(high, low + 0.5)

    def x(tokens: float) -> float:
        return left + (width - left - 16) * tokens / last

    def y(loss: float) -> float:
        return top + (height - top - bottom) * (high - loss) / (high - low)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12" fill="#444">',
             f'<rect width="{width}" height="{height}" fill="#fff"/>']
    loss = low
    while loss <= high + 1e-9:
        parts.append(f'<path d="M{left} {y(loss):.1f}H{width - 16}" stroke="#ddd"/><text x="{left - 8}" y="{y(loss) + 4:.1f}" text-anchor="end">{loss:.1f}</text>')
        loss += 0.5 if high - low <= 4 else 1.0
    for i in range(5):
        parts.append(f'<text x="{x(last * i / 4):.1f}" y="{height - bottom + 18}" text-anchor="middle">{last * i / 4e6:.1f}M</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 6}" text-anchor="middle">tokens seen</text>')
    for column, color, name in ((1, '#8a8a8a', 'training, with dropout'), (2, '#1f6fb2', 'validation')):
        line = ' '.join(f'{x(p[0]):.1f},{y(p[column]):.1f}' for p in points if p[column] is not None)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(f'<text x="{width - 24}" y="{top + 16 * column}" text-anchor="end" fill="{color}">{name}</text>')
    file.write_text('\n'.join([*parts, '</svg>']) + '\n')


def samples(folder: Path, device: torch.device) -> list[str]:
    """What the saved folder, read back as anyone would, makes of a prompt."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).to(device).eval()
    ids = tokenizer('Once upon a time', return_tensors='pt')['input_ids'].to(device)
    torch.manual_seed(7)
    texts = []
    for how in ({'do_sample': False, 'repetition_penalty': 1.1}, *[{'do_sample': True, 'temperature': 0.8, 'top_k': 40, 'top_p': 0.95}] * 2):
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=160, pad_token_id=tokenizer.eos_token_id, **how)
        texts.append(tokenizer.decode(out[0], skip_special_tokens=True))
    return texts


def settle_experts(model: torch.nn.Module, rows: torch.Tensor, wanted: str | None) -> str:
    """The experts implementation that runs here, forward and back; older versions of transformers have but one."""
    choose = getattr(model, 'set_experts_implementation', None)
    if choose is None:
        return 'the only one'
    for name in ([wanted] if wanted else [None, 'eager']):
        try:
            if name is not None:
                choose(name)
            loss_of(model, rows).backward()
            return name or str(getattr(model.config, '_experts_implementation', 'default'))
        except Exception as error:  # whatever a missing kernel raises
            print(f'experts implementation {name or "default"} does not run here: {type(error).__name__}: {error}')
        finally:
            model.zero_grad(set_to_none=True)
    sys.exit('no experts implementation runs here')


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    print(f'torch {torch.__version__}, transformers {transformers.__version__}, {torch.cuda.get_device_name() if device.type == "cuda" else "CPU"}')

    parts = [split(text) for text in books(args.corpus)]
    tokenizer = train_tokenizer([part[0] for part in parts], args.vocab, args.sequence)
    train, held = (stream(tokenizer, [part[i] for part in parts]) for i in (0, 1))
    characters = sum(len(text) for part in parts for text in part)
    print(f'{len(tokenizer)} tokens of vocabulary; {len(train)} to train on, {len(held)} held out, {characters / (len(train) + len(held)):.2f} characters a token')

    # On the host, so that a seed means the same weights on any device.
    model = DeepseekV3ForCausalLM(config_of(tokenizer, args.sequence))
    biases = [(m, m.e_score_correction_bias.clone()) for m in model.modules() if hasattr(m, 'e_score_correction_bias')]
    with torch.no_grad():
        for name, weight in model.named_parameters():  # residual branches start small, as many add up
            if name.endswith(('o_proj.weight', 'down_proj.weight', 'experts.down_proj')):
                weight /= math.sqrt(2 * model.config.num_hidden_layers)
    if device.type == 'cuda':  # a CPU is slow at BF16, and only tries the script out
        model = model.bfloat16()
    for gate, bias in biases:  # steps of a thousandth need f32
        gate.e_score_correction_bias = bias
    model = model.to(device).train()
    count = sum(p.numel() for p in model.parameters())
    print(f'{count / 1e6:.2f} million parameters, {2 * count / 1e6:.1f} MB in BF16')

    bos = tokenizer.bos_token_id
    source = batches(train, args, bos, device)
    experts = settle_experts(model, next(source), args.experts)
    print(f'experts: {experts}')
    add_dropout(model, args.dropout)
    balance = Balance(model, args.balance)
    optimizer = Optimizer(model, args, device)
    run = torch.compile(model) if args.compile else model

    per_step = args.batch * args.sequence
    steps = args.steps or max(1, math.ceil(args.epochs * len(train) / per_step))
    every = max(1, steps // args.evaluations)
    warmup = min(100, max(1, steps // 10))
    history: list[dict] = []
    best: dict | None = None
    kept: dict[str, torch.Tensor] = {}
    running = torch.zeros((), device=device)
    since, start, step, spent = 0, time.monotonic(), 0, 0.0
    while step < steps:
        # Whichever runs out first, steps or time, the rate has come down by then.
        progress = max(step / steps, (time.monotonic() - start) / (60 * args.minutes))
        if progress >= 1:
            break
        lr = args.lr * min(1, (step + 1) / warmup) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        loss = loss_of(run, next(source))
        loss.backward()
        optimizer.step(lr)
        balance.update()
        running += loss.detach()
        since += 1
        step += 1
        late = time.monotonic() - start > 60 * args.minutes
        if step == 1 or step % every == 0 or step == steps or late:
            trained = float(running) / since
            elapsed = time.monotonic() - start
            validation = validate(run, held, args, bos, device)
            shares = balance.shares()
            if not math.isfinite(validation):
                sys.exit(f'loss is {validation} at step {step}')
            row = {
                'step': step, 'tokens': step * per_step, 'seconds': round(elapsed, 1), 'lr': lr, 'train': round(trained, 4),
                'validation': round(validation, 4), 'least': min(min(s) for s in shares), 'most': max(max(s) for s in shares),
            }
            history.append(row)
            print(f'step {step}/{steps}  {elapsed:.0f} s  train {trained:.3f}  validation {validation:.3f}  '
                  f'{since * per_step / max(elapsed - spent, 1e-9):.0f} tokens/s  experts {row["least"]:.2f}..{row["most"]:.2f}', flush=True)
            spent = time.monotonic() - start
            running.zero_()
            since = 0
            if best is None or validation < best['validation']:
                best = row
                kept = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    seconds = time.monotonic() - start

    model.load_state_dict(kept)
    model.eval()
    if device.type == 'cpu':
        model = model.bfloat16()
        for gate, _ in biases:
            gate.e_score_correction_bias = gate.e_score_correction_bias.float()
    folder = args.out / 'story'
    model.config.use_cache = True
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    texts = samples(folder, device)
    record = {
        'torch': torch.__version__, 'transformers': transformers.__version__, 'parameters': count,
        'device': torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU', 'experts': experts,
        'arguments': {key: value for key, value in vars(args).items() if key not in ('corpus', 'out')},
        'vocabulary': len(tokenizer), 'trainTokens': len(train), 'validationTokens': len(held), 'seconds': round(seconds, 1),
        'tokensPerSecond': round(step * per_step / seconds), 'best': best, 'samples': texts, 'history': history,
    }
    (args.out / 'training.json').write_text(json.dumps(record, indent=1) + '\n')
    draw(history, args.out / 'training.svg')
    print(f'{step} steps in {seconds:.0f} s, {step * per_step / seconds:.0f} tokens/s; best validation loss {best["validation"]} at step {best["step"]}')
    for text in texts:
        print('---', text, sep='\n')


if __name__ == '__main__':
    main()
