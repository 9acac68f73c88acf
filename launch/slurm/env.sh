# Sourced in jobs before Python starts: XLA and JAX read these once, when they are loaded.
# What is set already stays, and flags that are given in XLA_FLAGS win over those here.
#   VENV     the virtual environment, .venv by default; VENV= (empty) where `python` is right already (modules, conda)

VENV="${VENV-.venv}"
if [ -n "$VENV" ]; then
    if [ ! -f "$VENV/bin/activate" ]; then
        echo "error: VENV=$VENV is no virtual environment; set VENV=/path/to/venv, or VENV= to use the python on the PATH" >&2
        exit 2
    fi
    # shellcheck disable=SC1091
    source "$VENV/bin/activate"
fi

if [ "${SLURM_GPUS_ON_NODE:-0}" -gt 0 ]; then
    # Communication of one layer while another one computes, which is what makes fsdp over several nodes worth it.
    export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"
    # One process owns its GPU; the rest is for NCCL and cuDNN.
    export XLA_PYTHON_CLIENT_MEM_FRACTION="${XLA_PYTHON_CLIENT_MEM_FRACTION:-.90}"
fi
# What is printed must not be lost with a task that is killed.
export PYTHONUNBUFFERED=1
