#!/bin/bash
# Train a recipe under SLURM on one GPU or several nodes. The job resumes after preemption or the time limit.
#
#   sbatch recipes/accelerate/slurm.sh --config recipes/blip-base-rocov2/lora.yaml --data_dir DATA --output_dir RUN
#   sbatch --nodes 2 --ntasks-per-node 8 --gpus-per-node 8 recipes/accelerate/slurm.sh --config ...
#
# RUN must be on a file system that all nodes share. All arguments are passed to scripts/train.py.
#SBATCH --job-name=medcap
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1        # one process per GPU
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8          # includes the processes that load images
#SBATCH --mem=0
#SBATCH --time=04:00:00
#SBATCH --requeue                  # SLURM requeues a preempted job
#SBATCH --signal=USR1@180          # 180 s before the time limit: enough for one step and a checkpoint
#SBATCH --open-mode=append
#SBATCH --output=medcap-%j.log

set -u
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK

# SLURM starts every process directly, so its signals reach training, which writes a checkpoint and exits with status
# 128 + signal number. The same command resumes from there. If one process fails, SLURM ends the others after 300 s.
srun --wait=300 bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' - \
    python scripts/train.py "$@"
status=$?

if [ "$status" -eq 138 ]; then     # 128 + SIGUSR1: time limit reached before the end of training
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
