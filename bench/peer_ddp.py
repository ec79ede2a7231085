"""The peer on several processes: HF transformers + PEFT under torch DistributedDataParallel over gloo. Same job file as peer_peft.py.

  peer_ddp.py JOB.json        starts job["ranks"] processes of itself
"""

import datetime
import json
import os
import subprocess
import sys
from pathlib import Path


def worker(job):
    # Not at the top: the process that starts the ranks must stay small (see measure.py).
    import torch.distributed
    from torch.nn.parallel import DistributedDataParallel

    import peer_peft

    torch.distributed.init_process_group("gloo", timeout=datetime.timedelta(seconds=120))
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    model = DistributedDataParallel(peer_peft.load_model(job))

    def average(value):
        torch.distributed.all_reduce(value)
        return value / world

    peer_peft.train(model, job, rank, world, average)
    torch.distributed.barrier()  # rank 0 hosts the store: it may not leave before the others
    # Not by gloo's tear-down, which was seen to wait forever once everything was done.
    sys.stdout.flush()
    os._exit(0)


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    if "RANK" in os.environ:
        return worker(job)
    common = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(job["port"]), WORLD_SIZE=str(job["ranks"]))
    processes = [
        subprocess.Popen([sys.executable, *sys.argv], env=os.environ | common | dict(RANK=str(rank)))
        for rank in range(job["ranks"])
    ]
    codes = [process.wait() for process in processes]
    sys.exit(1 if any(codes) else 0)


if __name__ == "__main__":
    main()
