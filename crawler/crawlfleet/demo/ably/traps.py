"""What goes wrong in the stand-in ably."""

from __future__ import annotations

from dataclasses import dataclass

from crawlfleet.demo.traps import Traps


@dataclass(frozen=True)
class AblyTraps(Traps):
    """What goes wrong beside the traps of every shop, all off.

    maintenance_200: the maintenance page with status 200.

    Sessions. api_401: the API refuses a session that the pages still take. silent_logout: sessions are dead, but
    the API answers 200 without orders and /orders is served; only /dashboard leads to the login page.
    revoke_mid_job, silent_logout_mid_job: the first session that reads a page of orders ends so, once an account.

    Login. wrong_password: 401. lose_login_reply: the login counts, but the connection is cut instead of a reply.
    captcha, two_factor: sessions from a login have to answer first: pages lead there, the API says 403.

    Pages. wall_302, wall_200: /orders leads to the login page, or is one; no page takes a session any more.
    The page /orders itself: popup (a dialog over it), alert, slow_table_s (so long until rows are drawn), hang (an
    endless loop once it is loaded), crash_renderer (it exhausts its memory once it is loaded), download (a
    file instead), endless_redirect, unknown_page (one never seen); huge_page_bytes also pads it.

    vanishing_orders: each page of orders is followed by the end of the newest order.
    """

    maintenance_200: bool = False
    api_401: bool = False
    silent_logout: bool = False
    revoke_mid_job: bool = False
    silent_logout_mid_job: bool = False
    wrong_password: bool = False
    lose_login_reply: bool = False
    captcha: bool = False
    two_factor: bool = False
    wall_302: bool = False
    wall_200: bool = False
    popup: bool = False
    alert: bool = False
    slow_table_s: float = 0.0
    hang: bool = False
    crash_renderer: bool = False
    download: bool = False
    endless_redirect: bool = False
    unknown_page: bool = False
    vanishing_orders: bool = False
