"""Where the views are."""

from django.http import HttpResponse
from django.urls import include, path

from . import views

urlpatterns = [
    path("create", views.create),
    path("guarded", views.guarded),
    path("plain/<kind>", views.plain),
    path("atomic/<kind>", views.atomic),
    path("required", views.required),
    path("put", views.put),
    path("template", views.template),
    path("upload", views.upload),
    path("stream", views.stream),
    path("sessions", views.sessions),
    path("later", views.later),
    path("slowly", views.slowly),
    path("ready", lambda request: HttpResponse("yes")),
    path("deep/", include([path("method", views.ByMethod.as_view())])),
    path("dispatch", views.ByDispatch.as_view()),
    path("nested", views.Nested.as_view()),
    path("viewset", views.ViewSet.as_view({"post": "create"})),
    path("hidden", views.hidden),
]
