"""Django's basics: migrations' schema editor, ORM, atomic blocks, iterators on server-side cursors (on by default)."""

import os
import sys
import threading

import django
from django.conf import settings
from django.db import IntegrityError, connection, connections, models, transaction

settings.configure(
    DATABASES={
        "default": {
            "ENGINE": "django.db.backends.postgresql",
            "HOST": os.environ["PGHOST"],
            "PORT": os.environ["PGPORT"],
            "USER": os.environ["PGUSER"],
            "NAME": os.environ["PGDATABASE"],
        }
    },
    USE_TZ=True,
    TIME_ZONE="Europe/Berlin",
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
)
django.setup()

CLIENTS = 6


class Author(models.Model):
    name = models.CharField(max_length=50, unique=True)
    born = models.DateTimeField(null=True)

    class Meta:
        app_label = "habits"
        db_table = "django_author"


class Book(models.Model):
    author = models.ForeignKey(Author, on_delete=models.CASCADE, related_name="books")
    title = models.CharField(max_length=50)

    class Meta:
        app_label = "habits"
        db_table = "django_book"


def check(got, expected):
    assert got == expected, f"{got!r} instead of {expected!r}"


def objects(who):
    for number in range(8):
        name = f"{who}-{number}"
        author = Author.objects.create(name=name)
        Book.objects.bulk_create(Book(author=author, title=f"{name}-{book}") for book in range(5))
        check(author.books.filter(title__endswith="-3").get().title, f"{name}-3")
        check(Author.objects.filter(name=name).update(name=f"{name}!"), 1)
        found = Author.objects.prefetch_related("books").get(name=f"{name}!")
        check(len(found.books.all()), 5)
        check(Author.objects.get_or_create(name=f"{name}!")[1], False)


def transactions(who):
    for number in range(8):
        name = f"{who}-transaction-{number}"
        with transaction.atomic():
            Author.objects.create(name=name)
            try:
                with transaction.atomic():
                    Author.objects.create(name=name)
                raise AssertionError("the name is taken")
            except IntegrityError:
                pass
            check(Author.objects.select_for_update().get(name=name).name, name)
        try:
            with transaction.atomic():
                Author.objects.filter(name=name).delete()
                raise KeyError(name)
        except KeyError:
            pass
        check(Author.objects.filter(name=name).count(), 1)


def server_side_cursors(who):
    with transaction.atomic():
        titles = [book.title for book in Book.objects.filter(title__startswith=f"{who}-").iterator(chunk_size=7)]
        check(len(titles), 40)


def raw(who):
    with connection.cursor() as cursor:
        cursor.execute("select %s, current_setting('TimeZone')", [who])
        # With USE_TZ a connection of Django's is set to UTC.
        check(cursor.fetchone(), (who, "UTC"))


failures = []


def client(who):
    for habit in [objects, transactions, server_side_cursors, raw]:
        try:
            habit(who)
        except BaseException as error:
            failures.append(f"{who}: {habit.__name__}: {error!r}")
    connections.close_all()


with connection.schema_editor() as editor:
    editor.create_model(Author)
    editor.create_model(Book)
threads = [threading.Thread(target=client, args=(f"client{number}",)) for number in range(CLIENTS)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
with connection.schema_editor() as editor:
    editor.delete_model(Book)
    editor.delete_model(Author)
print(f"Django {django.__version__}")
print(*failures, sep="\n")
sys.exit(bool(failures))
