"""Videos of a success and a failure per task."""


def run_stage(run, stage):
    return None
