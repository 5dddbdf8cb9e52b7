"""GET /docs: the API's own pages. Their scripts are served from here, so nothing is fetched."""

from importlib.resources import files

from fastapi import APIRouter, Response
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.staticfiles import StaticFiles

STATIC = "/docs/static"
PAGES = frozenset({"/docs", "/openapi.json"})

router = APIRouter(include_in_schema=False)


@router.get("/docs")
async def docs() -> Response:
    return get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Luthier",
        swagger_js_url=f"{STATIC}/swagger-ui-bundle.js",
        swagger_css_url=f"{STATIC}/swagger-ui.css",
        swagger_favicon_url=f"{STATIC}/favicon.png",
    )


def static_files() -> StaticFiles:
    """Swagger UI's script and style, as the fastapi-offline package ships them."""
    return StaticFiles(directory=str(files("fastapi_offline") / "static"))
