"""Mail an offer to customers: at most three connections at a time per domain."""

from __future__ import annotations

import os
import smtplib
from email.message import EmailMessage
from typing import Any

from celery_bgtask import bgtask

from . import shop


FAVOURITE = """
SELECT c.name, p.name, p.cents
FROM customers c
JOIN orders o ON o.customer_id = c.id
JOIN order_lines l ON l.order_id = o.id
JOIN products p ON p.id = l.product_id
WHERE c.email = ?
GROUP BY p.id
ORDER BY sum(l.quantity) DESC, p.id
LIMIT 1
"""


def domain(arguments: dict[str, Any]) -> str:
    """The task key of a call: what is behind the @ of its address."""
    return str(arguments["address"]).rpartition("@")[2]


@bgtask(
    task_key=domain,
    max_per_key=3,
    when_full="wait",
    autoretry_for=(OSError,),  # of which smtplib's errors are some
    retry_backoff=True,
)
def send_offer(address: str) -> None:
    """Offer a customer the favourite product; tried again if the server is away."""
    message = offer(address)
    with smtplib.SMTP(*smtp_address(), "shop.example", timeout=30) as smtp:
        smtp.send_message(message)


def offer(address: str) -> EmailMessage:
    """The mail to one customer, about what was ordered most."""
    with shop.connect() as db:
        name, product, cents = db.execute(FAVOURITE, (address,)).fetchone()
    message = EmailMessage()
    message["From"] = "offers@shop.example"
    message["To"] = address
    message["Subject"] = f"Your {product}, 20 % off"
    message.set_content(f"Dear {name},\n\nthis week for {cents * 0.8 / 100:.2f}.\n")
    return message


def smtp_address() -> tuple[str, int]:
    """Host and port of the mail server; the default is `smtp_server`'s."""
    host, _, port = os.environ.get("SHOP_SMTP", "127.0.0.1:8025").rpartition(":")
    return host, int(port)
