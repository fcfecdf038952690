# What the class-incremental runs have in common; tools/slca.py runs them.
_base_ = ['./classification_runtime.py']

incremental = dict(seed=1993, alignment=dict(scaling='mean', tau=0.1))

# A task is tested when it has been learnt and its heads are aligned, not before; the last epoch counts.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best=None, rule=None))
test_cfg = dict()
