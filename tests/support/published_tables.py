"""CSVs of the forms that the paper's authors published, with figures that nobody measured."""

from __future__ import annotations

from pathlib import Path

STEPS = """gpu,stage,model,dtype,m,pattern,tokens_per_s
H100,prefill,Qwen2.5-7B,FP8,4096,dense,50000.5
H100,prefill,Qwen2.5-7B,FP8,4096,6:8,60000.0
H100,decode,Qwen2.5-7B,INT8,64,2:4,9000.25
H100,decode,SomethingElse-3B,INT8,64,2:4,9000.25
A100,decode,Llama3.2-1B,INT8,64,dense,7090.615
"""

GEMMS = """gpu,cc,dtype,model,m,n,k,pattern,latency_us
H100,90,FP8,Qwen2.5-7B,4096,4608,3584,dense,100.5
H100,90,FP8,Qwen2.5-7B,4096,4608,3584,6:8,80.25
H100,90,FP8,Qwen2.5-7B,4096,4608,3584,dense-as-2:4,120.0
H100,90,INT8,Qwen2.5-7B,64,3584,18944,dense,30.0
H100,90,INT8,Qwen2.5-7B,64,3584,18944,14:16,29.0
H100,90,BF16,Qwen2.5-7B,64,3584,18944,dense,60.0
H100,90,FP8,SQUARE,64,64,64,dense,2.0
H100,90,FP8,Qwen2.5-7B,64,1000,3584,dense,2.0
A100,80,INT8,BitNet-2B,64,2560,2560,dense,13.619
"""


def write_table(folder: Path, text: str) -> Path:
    path = folder / "table.csv"
    path.write_text(text, encoding="utf-8")
    return path
