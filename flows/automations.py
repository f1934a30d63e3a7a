"""What a server does by itself: it marks runs that went silent as crashed, and tells someone of what went wrong."""

import asyncio
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import get_args

from prefect.automations import AutomationCore, EventTrigger, Posture
from prefect.blocks.notifications import CustomWebhookNotificationBlock
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState, SendNotification

from flows.artifacts import EVENT, Announcement
from flows.environment import HEARTBEAT_SECONDS

NOTIFY_URL = "UNCLIP_NOTIFY_URL"  # such a link is a password in itself, so it comes by the environment
BLOCK = "unclip-notify"
OURS = "unclip: "  # the names of our automations begin so
SILENCE = timedelta(seconds=4 * HEARTBEAT_SECONDS)  # with less than three heartbeats a healthy run is taken for dead
ENDS = ("Completed", "Failed", "Cancelled", "Crashed")
WHAT_FAILED = "{{ flow.name }} {{ flow_run.name }} is {{ flow_run.state.name }}: {{ flow_run.state.message }}"


def silent_runs() -> AutomationCore:
    """A run that sends no heartbeat and reports no end has lost its process: it is marked as crashed, and the next one may begin."""
    return AutomationCore(
        name=OURS + "a run without heartbeat has crashed",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.heartbeat", *(f"prefect.flow-run.{end}" for end in ENDS)},
            match={"prefect.resource.id": ["prefect.flow-run.*"]},
            for_each={"prefect.resource.id"},
            within=SILENCE,
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed", state=StateType.CRASHED, force=False, message=f"no heartbeat for {SILENCE.seconds} s: its process is gone; the next run goes on"
            )
        ],
    )


def notifications(block: SendNotification) -> Sequence[AutomationCore]:
    """One message for a run that failed or crashed, and one for each thing that a flow announces."""
    failed = EventTrigger(
        posture=Posture.Reactive,
        expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
        match={"prefect.resource.id": ["prefect.flow-run.*"]},
        for_each={"prefect.resource.id"},
    )
    announced = [
        AutomationCore(
            name=f"{OURS}tell of {kind}",
            trigger=EventTrigger(posture=Posture.Reactive, expect={EVENT.format(kind=kind)}),
            actions=[block.model_copy(update={"subject": f"unclip: {kind}", "body": "{{ event.payload.message }}"})],
        )
        for kind in get_args(Announcement)
    ]
    return [
        AutomationCore(
            name=OURS + "tell of a run that failed", trigger=failed, actions=[block.model_copy(update={"subject": "unclip: a run failed", "body": WHAT_FAILED})]
        ),
        *announced,
    ]


async def automate() -> Sequence[str]:
    """Gives the server our automations in the place of those that it has of an earlier time. Returns their names."""
    wanted = [silent_runs()]
    if url := os.environ.get(NOTIFY_URL):
        webhook = CustomWebhookNotificationBlock(name=BLOCK, url=url, json_data={"text": "{{subject}}\n{{body}}"}, headers=None, cookies=None)
        wanted += notifications(SendNotification(block_document_id=await webhook.save(BLOCK, overwrite=True), subject="", body=""))
    async with get_client() as client:
        there = {one.name: one.id for one in await client.read_automations() if one.name.startswith(OURS)}
        for automation in wanted:
            if automation.name in there:
                await client.update_automation(there.pop(automation.name), automation)
            else:
                await client.create_automation(automation)
        for left in there.values():
            await client.delete_automation(left)
    return [automation.name for automation in wanted]


if __name__ == "__main__":  # for the server of PREFECT_API_URL, where workers run the deployments; `unclip serve` does it by itself
    print("\n".join(asyncio.run(automate())))
