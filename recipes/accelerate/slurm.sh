#!/bin/bash
# Train a recipe under SLURM, on one GPU or on several nodes, and go on after the job was pre-empted or ran out of time.
#
#   sbatch recipes/accelerate/slurm.sh --config recipes/blip-base-rocov2/lora.yaml --data_dir DATA --output_dir RUN
#   sbatch --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 recipes/accelerate/slurm.sh --config ...
#
# RUN must lie where every node and the next job find it. The words after the script are those of scripts/train.py.
#SBATCH --job-name=medcap
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1        # one process for each GPU
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8          # for the processes that read images, too
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --requeue                  # a pre-empted job is queued again by SLURM itself
#SBATCH --signal=USR1@180          # 180 s before --time is up: time for one step and a checkpoint
#SBATCH --open-mode=append
#SBATCH --output=medcap-%j.log

set -u
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# SLURM starts every process itself: no launcher stands between its signal and the training, which then writes a
# checkpoint and leaves with 128 + the signal's number. The same command goes on from there. A process that is left
# alone by a failed one is ended after 300 s.
srun --wait=300 bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' - \
    python scripts/train.py "$@"
status=$?

if [ "$status" -eq 138 ]; then     # USR1: out of time, and not done
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
