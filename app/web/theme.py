"""Colors and fonts of the page. Text has a contrast of at least 4.5 to its background, light and dark (WCAG 2.2, AA)."""

from typing import Any

import gradio as gr

ACCENT, ACCENT_DARK = "#b3400f", "#ff9d66"  # on white 6.0, on the dark page 8.6
QUIET, QUIET_DARK = "#4b5563", "#b6bfcc"


def make_theme() -> Any:
    """Return the theme: gradio's default with system fonts and colors that everybody can read."""
    theme = gr.themes.Default(
        primary_hue=gr.themes.colors.orange,
        neutral_hue=gr.themes.colors.gray,
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
        radius_size=gr.themes.sizes.radius_md,
    )
    quiet = (
        "body_text_color_subdued",
        "block_info_text_color",
        "input_placeholder_color",
        "block_label_text_color",
        "accordion_text_color",
    )
    colors = dict.fromkeys(quiet, QUIET) | {f"{name}_dark": QUIET_DARK for name in quiet if name != "accordion_text_color"}
    return theme.set(
        **colors,
        accordion_text_color_dark=QUIET_DARK,
        block_title_text_color="#1f2937",
        block_title_text_color_dark="#e5e7eb",
        body_background_fill="#ffffff",
        body_background_fill_dark="#12151b",
        background_fill_primary_dark="#12151b",
        background_fill_secondary_dark="#1b2029",
        block_background_fill_dark="#1b2029",
        input_background_fill_dark="#232a35",
        border_color_primary_dark="#39424f",
        block_border_width="1px",
        block_shadow="none",
        button_primary_background_fill=ACCENT,
        button_primary_background_fill_dark=ACCENT,
        button_primary_background_fill_hover="#8f330c",
        button_primary_background_fill_hover_dark="#8f330c",
        button_primary_border_color=ACCENT,
        button_primary_border_color_dark=ACCENT,
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        color_accent=ACCENT,
        color_accent_soft_dark="#3a2a20",
        link_text_color=ACCENT,
        link_text_color_dark=ACCENT_DARK,
        slider_color=ACCENT,
        slider_color_dark=ACCENT_DARK,
        checkbox_background_color_selected=ACCENT,
        checkbox_background_color_selected_dark=ACCENT,
    )
