"""Which of the frameworks' tests are left out, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_BARE: Final = "fails without the adapter, too"
_CONTROL: Final = "asks the worker by remote control, which a protected worker refuses"
_CELERY: Final = "t/integration/test_tasks.py::test_tasks::"
_CANVAS: Final = "t/integration/test_canvas.py::test_chain::"
_ROUTING: Final = "tests/test_routing.py::TestRouting::"
_PLUGIN: Final = "the delayed-message plug-in is refused"
LEFT_OUT: Final[Mapping[str, Mapping[str, str]]] = {
    "dramatiq": {},
    "celery": {
        f"{_CELERY}test_revoked": _CONTROL,
        f"{_CELERY}test_revoke_keeps_state_of_task_started_elsewhere": _CONTROL,
        f"{_CELERY}test_revoked_by_headers_simple_canvas": _CONTROL,
        f"{_CELERY}test_revoked_by_headers_complex_canvas": _CONTROL,
        f"{_CELERY}test_revoke_by_stamped_headers_no_match": _CONTROL,
        f"{_CANVAS}test_chord_header_id_duplicated_on_rabbitmq_msg_duplication": "publishes an unsigned copy",
        "t/integration/test_tasks.py::test_trace_log_arguments": _BARE,
        # It clears its flag after it has sent, and the worker may have set it by then; alone it passes.
        "t/integration/test_tasks.py::test_task_replacement::test_replaced_task_nesting_level_0": "a race",
    },
    "kombu": {
        f"t/integration/test_py_amqp.py::test_PyAMQP{name}::test_simple_{kind}_publish_consume": _BARE
        for name in ("BasicFunctionality", "Failover")
        for kind in ("queue", "buffer")
    },
    "taskiq": {
        f"{_ROUTING}test_when_message_has_wrong_format__then_message_still_can_be_received": "nobody signs it",
        "tests/test_delay_with_plugin.py": _PLUGIN,
        **{
            f"tests/test_startup.py::TestStartup::test_when_delayed_message_exchange_plugin_{name}": _PLUGIN
            for name in (
                "enabled__broker_declares_exchange_on_startup",
                "enabled_and_custom_exchange_not_declared__broker_raise_error",
            )
        },
    },
}
"""By framework: a test, as pytest names it, and why it is not run."""
