"""What the rollback has to say is in MMEngine's log file."""

from ._toy import make_runner, toy_config


def test_why_there_is_no_single_pass_is_in_the_log(tmp_path):
    optimizer = {'type': 'Adam', 'lr': 0.01, 'amsgrad': True}
    config = toy_config(tmp_path, rollback={'max_level': 0.1, 'power': 2, 'form': 'single_pass'}, optimizer=optimizer)
    make_runner(config).train()
    (log,) = tmp_path.glob('*/*.log')
    assert log.read_text().count("form='single_pass' is not possible here (amsgrad=True)") == 1
