#!/bin/bash
# Train on Slurm: as many nodes and GPUs as asked for below, requeued until the training is finished.
#
#     sbatch docs/slurm_train.sh --config configs/main_config/train/celeb_t2f_gaus1.2.yaml \
#         --exp_name celeb
#
# Ten minutes before its time is up, or when a job of higher priority wants the nodes, every process
# gets SIGUSR1, finishes its step, saves, and ends with code 138; then this job queues again and the
# same command goes on where it was. docs/cluster.md has the other exit codes.
#SBATCH --job-name=t2f
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=results/slurm-%x.txt

export MASTER_ADDR MASTER_PORT
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

# A process for each GPU without a launcher between, so that Slurm's signals reach the training and
# its exit code reaches Slurm. A process that dies takes the others with it.
srun --kill-on-bad-exit=1 bash -c '
    export WORLD_SIZE=$SLURM_NTASKS RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID
    export LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
    exec .venv/bin/python train_latent_t2f.py "$@"' train "$@"
code=$?

case $code in
    0 | 2 | 3) exit $code ;; # finished, a mistake in the settings, diverged: again would not help
    *) # stopped to be continued, or a process was lost
        echo "ended with code $code after $((SLURM_RESTART_COUNT + 0)) restart(s)"
        ((${SLURM_RESTART_COUNT:-0} < 50)) && scontrol requeue "$SLURM_JOB_ID"
        exit $code
        ;;
esac
