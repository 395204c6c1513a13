#!/usr/bin/env python3
"""Makes tests/suite/reference_vectors.bin: what the fp32 model says of real texts without any of our code.

    python3 -m venv /tmp/reference && /tmp/reference/bin/pip install onnxruntime==1.31.1 tokenizers==0.22.2 numpy
    /tmp/reference/bin/python tests/support/reference_vectors.py MODEL_DIR FAQ_JSONL tests/suite/reference_vectors.bin

The texts are 200 entries of the FAQ, evenly spaced, each `question + "\n" + answer`. Padding is off, truncation is at
256 tokens, the token states (output_0) are averaged over the mask and scaled to length one.

The file: for each text the first 16 bytes of its SHA-256 (UTF-8), then its vector, 384 f32, little-endian.
"""

import hashlib
import json
import sys

import numpy
import onnxruntime
from tokenizers import Tokenizer

TEXTS = 200
TOKENS_MAX = 256


def main(model_dir, faq, output):
    with open(faq, encoding="utf-8") as lines:
        entries = [json.loads(line) for line in lines]
    if len(entries) < TEXTS:
        sys.exit(f"{faq} has {len(entries)} entries, wanted {TEXTS}")
    chosen = [entries[index * len(entries) // TEXTS] for index in range(TEXTS)]
    texts = [entry["question"] + "\n" + entry["answer"] for entry in chosen]

    tokenizer = Tokenizer.from_file(f"{model_dir}/tokenizer.json")
    tokenizer.no_padding()
    tokenizer.enable_truncation(TOKENS_MAX)
    session = onnxruntime.InferenceSession(f"{model_dir}/model.onnx", providers=["CPUExecutionProvider"])

    with open(output, "wb") as out:
        for text in texts:
            ids = numpy.array([tokenizer.encode(text).ids], dtype=numpy.int64)
            mask = numpy.ones_like(ids)
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": numpy.zeros_like(ids)}
            states = session.run(["output_0"], inputs)[0][0].astype(numpy.float64)
            weights = mask[0][:, None].astype(numpy.float64)
            mean = (states * weights).sum(axis=0) / weights.sum()
            vector = (mean / numpy.linalg.norm(mean)).astype("<f4")
            assert vector.shape == (384,) and numpy.isfinite(vector).all()
            out.write(hashlib.sha256(text.encode("utf-8")).digest()[:16])
            out.write(vector.tobytes())


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
