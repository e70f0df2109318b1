"""The batch script that starts Dask workers on SLURM, as dask-jobqueue writes it.

python -m mmstudy.core.slurm tcp://login:8786 --workers 8 --gpus 1 > workers.sh
"""

import argparse

from mmstudy.core.arguments import whole
from mmstudy.core.extras import needed


def script(
    scheduler: str,
    workers: int,
    gpus: int = 0,
    memory: str = "4GB",
    walltime: str = "08:00:00",
    partition: str | None = None,
) -> str:
    """A job array with one worker of one thread in each job, for `sbatch`.

    What else a site asks for (an account, a log folder) is read from dask-jobqueue's own configuration file.

    Args:
        scheduler: the address of a Dask scheduler that the machines of the cluster can reach.
        gpus: of each worker; SLURM shows a job its own ones only.
        memory: of each worker.
        walltime: after which a worker ends; what it is at is given to another one.

    Raises:
        ValueError: no worker, or fewer than no GPUs.
        TypeError: numbers that are not whole.
        ImportError: dask-jobqueue is not installed.
    """
    whole(workers, "workers", 1)
    whole(gpus, "gpus", 0)
    with needed("slurm"):
        from dask_jobqueue.slurm import SLURMJob
    return SLURMJob(
        scheduler,
        "worker-$SLURM_JOB_ID",  # a scheduler takes no name twice
        job_name="mmstudy",
        queue=partition,
        walltime=walltime,
        cores=1,
        processes=1,
        memory=memory,
        job_extra_directives=[f"--array=1-{workers}", *([f"--gres=gpu:{gpus}"] if gpus else [])],
        worker_extra_args=["--memory-limit", "0"],  # SLURM holds the limit; Dask would pause a worker well below it
    ).job_script()


def main() -> None:
    """Print the script that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scheduler", help="the address of a Dask scheduler, such as tcp://login:8786")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--gpus", type=int, default=0, help="of each worker")
    parser.add_argument("--memory", default="4GB", help="of each worker")
    parser.add_argument("--walltime", default="08:00:00")
    parser.add_argument("--partition")
    print(script(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
